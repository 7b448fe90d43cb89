#!/bin/sh
# Install Debian packages where this user may, and say in one line what to install where not: apt.sh PACKAGE...
set -eu
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "setup: this needs a package that is not here; as root: apt-get install $*" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# The lists of a fresh machine are empty, and those of an old one name files that are gone.
apt-get update -qq >&2
apt-get install -y -qq --no-install-recommends "$@" >&2
