#!/bin/sh
# Run tiers of tests: test.sh PYTHON [TIER...]
#
# A tier is a folder of tests/. A tier that needs more than the environment has a prepare.sh, which gets what it needs and prints
# variables for the tests' environment, one NAME=value a line. It exits with 3 after a line that says why this machine cannot
# run the tier: the tier is then left out, which is a failure in CI and for a tier that was named.
#
# Each tier that needs Kubernetes runs inside a cluster of its own, which ends with it. K8S selects the minor version.
# Default: the newest.
#
# The last line sums the tests of all sessions.
#
# A tier of $on_request is left out unless it is named: it takes longer than continuous integration may.
#
# Two things run while tests compute: the preparation of later tiers, and the installation tier, which mostly waits.
set -eu
. "$(dirname "$0")/exported.sh"
python=$1
shift
known="unit packaging conformance compiled s3 images apiserver cluster installation"
on_request="torch"
tiers=${*:-$known}
named=$#
ci=$([ "${CI:-}" = true ] && echo yes || echo no)
slowest=$([ "$ci" = no ] || echo --durations=15)
failed=0
left_out=''
started=$(date +%s)

work=$(mktemp -d)
mkdir "$work/counts"
background=''  # processes, and groups of them as -GROUP
# shellcheck disable=SC2086  # a list of processes
trap 'kill -s TERM -- $background 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# session PROCESSES TIER...: become a session of pytest with the tests of tiers, inside of $inside
session() {
    processes=$1
    shift
    folders=''
    RESHARD_TEST_COUNTS=$work/counts/$(echo "$*" | tr ' ' +)
    export RESHARD_TEST_COUNTS
    : >"$RESHARD_TEST_COUNTS"
    for tier in "$@"; do
        [ ! -f "$work/$tier.variables" ] || exported "$(cat "$work/$tier.variables")"
        folders="$folders tests/$tier"
    done
    # shellcheck disable=SC2086  # a command and its arguments, and a list of folders
    exec ${inside:-} "$python" -m pytest -o cache_dir="${PYTEST_CACHE:-.pytest_cache}" $slowest \
        -n "$processes" --maxprocesses 8 --dist worksteal $folders
}

# session_in_cluster TIER
session_in_cluster() {
    # Tests of the whole installation run one after the other; the others wait for pods more than they compute.
    case $1 in
        apiserver) level=--control-plane-only processes=4 ;;
        cluster) level='' processes=4 ;;
        installation) level='' processes=1 ;;
    esac
    export PYTHONPATH="$PWD/tests/support"
    inside="$python -m cluster run $level --"
    session "$processes" "$1"
}

# can_run TIER: whether its preparation succeeded
can_run() {
    code=$(cat "$work/$1.code")
    [ "$code" -ne 0 ] || return 0
    echo "test: tier $1 is left out, for the reason above" >&2
    left_out="$left_out $1"
    if [ "$code" -ne 3 ] || [ "$ci" = yes ] || [ "$named" -ne 0 ]; then failed=1; fi
    return 1
}

for tier in $on_request; do
    [ "$named" -ne 0 ] || echo "test: tier $tier takes long and is left out; run it with: make test TIER=$tier" >&2
done

at_once='' prepared=''
for tier in $tiers; do
    case " $known $on_request " in
        *" $tier "*) ;;
        *) echo "test: there is no tier '$tier'; there are: $known $on_request" >&2; exit 2 ;;
    esac
    if [ -f "tests/$tier/prepare.sh" ]; then prepared="$prepared $tier"; else at_once="$at_once $tier"; fi
done

# shellcheck disable=SC2086  # lists of tiers
if [ -z "$at_once" ]; then
    sh scripts/prepare.sh "$work" $prepared
else
    # A group of its own, so that it can be ended with all that it has started.
    "$python" -c 'import os, sys; os.setsid(); os.execvp("nice", sys.argv)' \
        nice sh scripts/prepare.sh "$work" $prepared 2>"$work/said" &
    background=-$!
    (session auto $at_once) || failed=1
    wait "${background#-}" || failed=1
    background=''
    cat "$work/said" >&2
fi

together='' clusters='' installation=''
for tier in $prepared; do
    if can_run "$tier"; then
        case $tier in
            apiserver) clusters="$tier $clusters" ;;  # before the cluster tier, which has more pods to start
            cluster) clusters="$clusters $tier" ;;
            installation) installation=$tier ;;
            *) together="$together $tier" ;;
        esac
    fi
done
end_installation() {
    [ -n "$background" ] || return 0
    wait "$background" || failed=1
    background=''
    cat "$work/installation.log"
}
if [ -n "$installation" ]; then
    (session_in_cluster installation) >"$work/installation.log" 2>&1 &
    background=$!
fi
# With lower priority: the components of a cluster have deadlines. At least three processes: tests of S3 wait for answers.
processes=$("$python" -c 'import os; print(max(3, os.cpu_count() or 1))')
# shellcheck disable=SC2086  # a list of tiers
[ -z "$together" ] || (inside=${installation:+nice} && session "$processes" $together) || failed=1
for tier in $clusters; do
    [ "$tier" != cluster ] || end_installation  # the pods of both would compete
    (session_in_cluster "$tier") || failed=1
done
end_installation

# A session that ends before its tests leaves its file empty.
early=$(find "$work/counts" -type f -empty -printf ' %f')
find "$work/counts" -type f -exec cat {} + | awk -v seconds="$(($(date +%s) - started))" \
    -v rest="${left_out:+; left out:$left_out}${early:+; ended early:$early}" '
    { passed += $1; failed += $2; skipped += $3 }
    END { printf "test: %d passed, %d failed, %d skipped in %d s%s\n", passed, failed, skipped, seconds, rest }'
exit "$failed"
