#!/bin/sh
# Get a real Kubernetes cluster of one node, and the images that its pods run.
set -eu
. "$(dirname "$0")/../tools/machine.sh"

packages etcd-server containerd runc containernetworking-plugins buildah debootstrap iptables conntrack socat ipset ethtool \
    iproute2 busybox-static
programs kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl kwok
PYTHONPATH=$tools/../support "${PYTHON:-python3}" -m cluster images || leave_out "its images cannot be made"
