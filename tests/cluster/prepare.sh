#!/bin/sh
# Get a real Kubernetes cluster of one node, and the images that its pods run.
set -eu
. "$(dirname "$0")/../tools/machine.sh"

packages etcd-server containerd runc containernetworking-plugins buildah debootstrap iptables conntrack socat ipset ethtool \
    iproute2 openssl busybox-static jq
programs kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl kwok helm registry
sh "$tools/../s3/prepare.sh" versitygw || leave_out "there is no S3 server for it"
# The behaviour of simulated nodes is defined in kwok's module.
kwok=$(cd "$tools/kubernetes-1.37" && go mod download sigs.k8s.io/kwok && go list -m -f '{{.Dir}}' sigs.k8s.io/kwok) \
    || leave_out "kwok's module cannot be had"
echo "RESHARD_KWOK_STAGES=$kwok/kustomize/stage"
# An image of the project is one more DOCKERFILE CONTEXT NAME.
PYTHONPATH=$tools/../support "${PYTHON:-python3}" -m cluster images \
    converter_image/Dockerfile . localhost/reshard-converter:tests operator/Dockerfile . localhost/reshard-operator:tests \
    || leave_out "its images cannot be made"
