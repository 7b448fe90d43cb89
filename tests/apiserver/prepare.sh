#!/bin/sh
# Get a real API server with its controllers.
set -eu
. "$(dirname "$0")/../tools/machine.sh"

packages etcd-server iproute2 openssl
programs kube-apiserver kube-controller-manager kubectl helm

# promtool fires the alerts; only their tests need it. Its package is only unpacked, because it would start a server if it were
# installed.
folder=$cache/promtool
if [ ! -x "$folder/usr/bin/promtool" ]; then
    mkdir -p "$folder"
    (cd "$folder" && apt-get update -qq && apt-get download -qq prometheus && dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb) >&2 \
        || echo "test: no Debian package prometheus, so alerts are not fired" >&2
fi
[ ! -x "$folder/usr/bin/promtool" ] || echo "RESHARD_PROMTOOL=$folder/usr/bin/promtool"
