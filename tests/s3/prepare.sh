#!/bin/sh
# Get a real S3 server, and openssl for its certificates.
set -eu
here=$(dirname "$0")

leave_out() {
    echo "test: no S3 server: $1" >&2
    exit 3
}

command -v openssl >/dev/null || sh "$here/../../scripts/apt.sh" openssl || leave_out "it has certificates made by openssl"
command -v go >/dev/null || leave_out "it is built with Go, which is not here"
folders=$(sh "$here/../tools/build.sh" versitygw) || leave_out "it cannot be built"
echo "RESHARD_S3_SERVER=$folders/versitygw"
