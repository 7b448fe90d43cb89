#!/bin/sh
# Run tiers of tests: test.sh PYTHON [TIER...]
#
# A tier is a folder of tests/. One that needs more than the environment has a prepare.sh, which gets it and prints what the
# tests find in their environment, one NAME=value a line. It exits with 3 after a line that says why this machine cannot have
# it: the tier is then left out, which in CI, and for a tier that was asked for by name, is a failure.
#
# The tiers that need Kubernetes are each run inside a cluster of their own, which ends with them.
set -eu
. "$(dirname "$0")/exported.sh"
python=$1
shift
known="unit packaging conformance compiled s3 images apiserver cluster installation"
tiers=${*:-$known}
named=$#
ci=$([ "${CI:-}" = true ] && echo yes || echo no)

folders='' clusters='' failed=0
for tier in $tiers; do
    case " $known " in
        *" $tier "*) ;;
        *) echo "test: there is no tier '$tier'; there are: $known" >&2; exit 2 ;;
    esac
    if [ -z "$(find "tests/$tier" -name 'test_*.py' 2>/dev/null)" ]; then
        [ "$named" -eq 0 ] || echo "test: tier $tier has no tests yet"
        continue
    fi
    if [ -f "tests/$tier/prepare.sh" ]; then
        code=0
        found=$(sh "tests/$tier/prepare.sh") || code=$?
        if [ "$code" -ne 0 ]; then
            echo "test: tier $tier is left out, for the reason above" >&2
            if [ "$code" -ne 3 ] || [ "$ci" = yes ] || [ "$named" -ne 0 ]; then failed=1; fi
            continue
        fi
        exported "$found"
    fi
    case $tier in
        apiserver | cluster | installation) clusters="$clusters $tier" ;;
        *) folders="$folders tests/$tier" ;;
    esac
done

# run PROCESSES FOLDER...: the tests of folders
run() {
    processes=$1
    shift
    set -- -m pytest -o cache_dir="${PYTEST_CACHE:-.pytest_cache}" -n "$processes" --maxprocesses 8 --dist worksteal "$@"
    # shellcheck disable=SC2086  # a command and its arguments
    ${inside:-} "$python" "$@" || failed=1
}

# shellcheck disable=SC2086  # a list of folders
[ -z "$folders" ] || run auto $folders

export PYTHONPATH="$PWD/tests/support"
for tier in $clusters; do
    # Tests of the whole installation go one after the other; others wait for pods more than they compute.
    case $tier in
        apiserver) inside="$python -m cluster run --control-plane-only --"; processes=4 ;;
        cluster) inside="$python -m cluster run --"; processes=4 ;;
        installation) inside="$python -m cluster run --"; processes=1 ;;
    esac
    run "$processes" "tests/$tier"
done
exit "$failed"
