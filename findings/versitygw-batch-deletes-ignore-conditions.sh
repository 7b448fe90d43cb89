#!/bin/sh
# versitygw 1.8.0 (posix backend), boto3 1.44.8, 2026-11-30
#
# A program that deletes an object only if nobody has replaced it sends the entity tag that it has seen. versitygw compares it in
# DeleteObject (`If-Match`), and refuses. In DeleteObjects (`ETag` of an object in the list), it ignores the tag, deletes the newer
# object, and reports success.
#
# A good guess: both requests have had the condition since S3 added it for all buckets in 2025, and a server that knows one of them
# knows the other. The batch is only a faster way to send the same deletes.
set -eu
. "$(dirname "$0")/lib/environment.sh"

install boto3==1.44.8
GOBIN="$folder" go install github.com/versity/versitygw/cmd/versitygw@v1.8.0 2>"$folder/errors" || { cat "$folder/errors" >&2; exit 3; }
observe <<'END_OF_PROGRAM'
import os
import socket
import subprocess
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.mkdir("objects")
command = ["./versitygw", "--access", "key", "--secret", "secret", "--port", f"127.0.0.1:{port}", "--quiet", "posix", "objects"]
server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
try:
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(s3={"addressing_style": "path"}),
    )
    for _ in range(100):
        try:
            client.create_bucket(Bucket="bucket")
            break
        except EndpointConnectionError:
            time.sleep(0.1)

    def exists(key):
        return bool(client.list_objects_v2(Bucket="bucket", Prefix=key)["KeyCount"])

    seen = client.put_object(Bucket="bucket", Key="one", Body=b"old")["ETag"]
    client.put_object(Bucket="bucket", Key="one", Body=b"newer")
    try:
        client.delete_object(Bucket="bucket", Key="one", IfMatch=seen)
    except ClientError as error:
        print("DeleteObject:", error.response["Error"]["Code"])
    print("the newer object exists:", exists("one"))

    for tag in (seen, seen.strip('"')):
        answer = client.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": "one", "ETag": tag}]})
        print("DeleteObjects: deleted", [each["Key"] for each in answer.get("Deleted", [])], "errors", answer.get("Errors", []))
        print("the newer object exists:", exists("one"))
        client.put_object(Bucket="bucket", Key="one", Body=b"newer")
finally:
    server.terminate()
    server.wait(10)
END_OF_PROGRAM
expect <<'END'
DeleteObject: PreconditionFailed
the newer object exists: True
DeleteObjects: deleted ['one'] errors []
the newer object exists: False
DeleteObjects: deleted ['one'] errors []
the newer object exists: False
END
