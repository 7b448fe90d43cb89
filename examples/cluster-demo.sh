#!/bin/sh
# Install the chart and run two transforms in the cluster of KUBECONFIG (`make cluster-demo`).
set -eu
cd "$(dirname "$0")/.."
PATH=${RESHARD_PROGRAMS:+$RESHARD_PROGRAMS:}$PATH
results=$PWD/build/cluster-demo
registry=${REGISTRY:-localhost}
tag=${TAG:-tests}

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

rm -rf "$results"
mkdir -p "$results"
chmod 777 "$results"  # the pods run as another user
say helm upgrade --install reshard helm/reshard --namespace reshard-system --create-namespace --wait \
    --set "operator.image.repository=$registry/reshard-operator,converter.image.repository=$registry/reshard-converter" \
    --set "operator.image.tag=$tag,converter.image.tag=$tag,converter.resources.requests.cpu=20m"

# Use folders of this machine as claims. This requires that this machine is the node of the cluster.
for claim in checkpoints results; do
    folder=$results
    [ "$claim" = results ] || folder=$PWD/tests/conformance/corpus
    kubectl apply -f - <<END
apiVersion: v1
kind: PersistentVolume
metadata: {name: reshard-demo-$claim}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ""
  capacity: {storage: 1Gi}
  hostPath: {path: "$folder"}
  claimRef: {namespace: default, name: $claim}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $claim, namespace: default}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ""
  volumeName: reshard-demo-$claim
  resources: {requests: {storage: 1Gi}}
END
done

say kubectl apply -f examples/retrain-on-4.yaml -f examples/serve-on-2.yaml
kubectl get checkpointtransforms --watch &
watch=$!
for name in retrain-on-4 serve-on-2; do
    kubectl wait "checkpointtransform/$name" --for=jsonpath='{.status.completionTime}' --timeout=10m >/dev/null
done
kill "$watch"
say kubectl get checkpointtransforms,jobs --output wide
say kubectl wait checkpointtransform/retrain-on-4 checkpointtransform/serve-on-2 --for=condition=Complete --timeout=1s

printf '\nThe results are in %s.\n' "$results"
if [ -n "${RESHARD_CLUSTER:-}" ] && [ -t 0 ]; then
    printf 'To explore the cluster, run in another terminal: sh %s/enter\nThe cluster ends with this command: press Enter. ' "$RESHARD_CLUSTER"
    read -r _
fi
