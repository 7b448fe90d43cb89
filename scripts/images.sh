#!/bin/sh
# Build both images for every platform and push them: images.sh REGISTRY PLATFORMS TAG
#
#   PUSH_OPTIONS    more options for each push, of buildah and podman
#   ENGINE          docker (with buildx), buildah or podman; default: the first of them that is installed
#   BUILD_OPTIONS   more options for each build, such as --build-arg BASE_IMAGE=...
#
# A builder of docker's that can attach an SBOM and provenance to the images does. The provenance publishes build arguments: pass no
# secrets in BUILD_OPTIONS.
set -eu
[ $# -eq 3 ] && [ -n "$1" ] || { echo "images: name the registry to push to, with REGISTRY=" >&2; exit 2; }
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
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-dirty
created=$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ 2>/dev/null || echo unknown)
attestations=''
if [ "$ENGINE" = docker ]; then
    # The driver "docker" refuses them.
    case $(docker buildx inspect 2>/dev/null | sed -n 's/^Driver: *//p') in
        docker-container | kubernetes | remote) attestations='--sbom=true --provenance=mode=max' ;;
    esac
fi
[ -n "$attestations" ] || echo "images: $ENGINE attaches no SBOM and no provenance; a docker-container builder of buildx does" >&2
for part in converter operator; do
    folder=$part
    [ "$part" = operator ] || folder=${part}_image
    image=$registry/reshard-$part:$tag
    # shellcheck disable=SC2086  # a list of options
    set -- --file "$folder/Dockerfile" --build-arg "VERSION=$tag" --build-arg "REVISION=$revision" \
        --build-arg "CREATED=$created" ${BUILD_OPTIONS:-}
    if [ "$ENGINE" = docker ]; then
        # shellcheck disable=SC2086  # a list of options
        docker buildx build $attestations --platform "$platforms" --tag "$image" --push "$@" .
    else
        "$ENGINE" manifest rm "$image" >/dev/null 2>&1 || true  # left by an earlier build
        "$ENGINE" build --platform "$platforms" --manifest "$image" "$@" .
        # shellcheck disable=SC2086  # a list of options
        "$ENGINE" manifest push --all ${PUSH_OPTIONS:-} "$image" "docker://$image"
    fi
done
