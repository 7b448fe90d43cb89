#!/bin/sh
# Get real S3 servers, and openssl for certificates: prepare.sh [PROGRAM...]
#
# Without arguments both: versitygw and MinIO, which takes some minutes to build, once.
set -eu
here=$(dirname "$0")

leave_out() {
    echo "test: no S3 server: $1" >&2
    exit 3
}

command -v openssl >/dev/null || sh "$here/../../scripts/apt.sh" openssl || leave_out "it has certificates made by openssl"
command -v go >/dev/null || leave_out "it is built with Go, which is not here"
for program in ${*:-versitygw minio}; do
    folder=$(sh "$here/../tools/build.sh" "$program") || leave_out "$program cannot be built"
    case $program in
        versitygw) echo "RESHARD_S3_SERVER=$folder/versitygw" ;;
        minio) echo "RESHARD_MINIO=$folder/minio" ;;
    esac
done
