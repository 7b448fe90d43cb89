#!/bin/sh
# botocore 1.44.8, 2026-11-29
#
# In the standard retry mode, all requests of a client share one quota for retries, which only successes refill. When a server
# cannot be reached for a moment, the retries of a few dozen concurrent requests use it up. From then on, each request that cannot
# connect fails at its first try, although eight are configured. The error says the same as after eight tries: the mark
# RetryQuotaReached exists only in errors that have a response.
#
# A good guess: with total_max_attempts=8, each request is tried eight times, as long as the error is one of those that are retried.
set -eu
. "$(dirname "$0")/lib/environment.sh"

install botocore==1.44.8
observe <<'END'
import socket
from concurrent.futures import ThreadPoolExecutor

from botocore.config import Config
from botocore.session import Session

with socket.socket() as unused:  # the server that is not there: nothing listens on this port
    unused.bind(("127.0.0.1", 0))
    port = unused.getsockname()[1]
    config = Config(retries={"mode": "standard", "total_max_attempts": 8}, max_pool_connections=64)
    session = Session()
    session.set_credentials("key", "secret")
    client = session.create_client("s3", "us-east-1", endpoint_url=f"http://127.0.0.1:{port}", config=config)
    tries = []
    client.meta.events.register("before-send.s3.GetObject", lambda **_: tries.append(1))

    def failed(_):
        try:
            client.get_object(Bucket="bucket", Key="key")
        except Exception as error:
            return error

    with ThreadPoolExecutor(64) as pool:
        errors = list(pool.map(failed, range(64)))
    print(f"64 concurrent requests: {len(tries)} tries")
    tries.clear()
    errors.append(failed(None))
    print(f"one more request: {len(tries)} try")
    print(", ".join(sorted({type(error).__name__ for error in errors})))
    print("errors that mention the quota:", sum("quota" in f"{error} {vars(error)}".lower() for error in errors))
END
expect <<'END'
64 concurrent requests: 99 tries
one more request: 1 try
EndpointConnectionError
errors that mention the quota: 0
END
