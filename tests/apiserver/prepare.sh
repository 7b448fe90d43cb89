#!/bin/sh
# Get a real API server with its controllers.
set -eu
. "$(dirname "$0")/../tools/machine.sh"

packages etcd-server iproute2 openssl
programs kube-apiserver kube-controller-manager kubectl helm
