#!/bin/sh
# Build both images for every platform and push them: images.sh REGISTRY PLATFORMS TAG
#
#   PUSH_OPTIONS    more options for each push, of buildah and podman
#   ENGINE          docker (with buildx), buildah or podman; without: the first of them that is here
#   BUILD_OPTIONS   more options for each build, such as --build-arg BASE_IMAGE=...
set -eu
[ $# -eq 3 ] && [ -n "$1" ] || { echo "images: say where to push them, with REGISTRY=" >&2; exit 2; }
registry=$1 platforms=$2 tag=$3
cd "$(dirname "$0")/.."

if [ -z "${ENGINE:-}" ]; then
    for ENGINE in docker buildah podman none; do
        case $ENGINE in
            docker) docker buildx version >/dev/null 2>&1 && break ;;
            *) command -v "$ENGINE" >/dev/null && break ;;
        esac
    done
fi
[ "$ENGINE" != none ] || { echo "images: this needs docker with buildx, buildah, or podman" >&2; exit 1; }

revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
for part in converter operator; do
    folder=$part
    [ "$part" = operator ] || folder=${part}_image
    image=$registry/reshard-$part:$tag
    # shellcheck disable=SC2086  # a list of options
    set -- --file "$folder/Dockerfile" --build-arg "VERSION=$tag" --build-arg "REVISION=$revision" ${BUILD_OPTIONS:-}
    if [ "$ENGINE" = docker ]; then
        docker buildx build --platform "$platforms" --tag "$image" --push "$@" .
    else
        "$ENGINE" manifest rm "$image" >/dev/null 2>&1 || true  # what an earlier build has left
        "$ENGINE" build --platform "$platforms" --manifest "$image" "$@" .
        # shellcheck disable=SC2086  # a list of options
        "$ENGINE" manifest push --all ${PUSH_OPTIONS:-} "$image" "docker://$image"
    fi
done
