# shellcheck shell=sh
# To be sourced by the scripts of this folder: a temporary folder with an environment of pinned packages.

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM

# install PACKAGE==VERSION...: an environment with these packages, or these versions in it, on the first Python that MindSpore 2.10 supports
install() {
    python=''
    for candidate in "${PYTHON:-python3}" python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || { echo "Python 3.10, 3.11 or 3.12 is required" >&2; exit 3; }
    [ -e "$folder/environment" ] || "$python" -m venv "$folder/environment"
    "$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"
    cp "$(dirname "$0")/lib/checkpoints.py" "$folder"
}

# observe: run the Python program on standard input, show its output and keep it for `expect`
observe() {
    cat >"$folder/program.py"
    (cd "$folder" && GLOG_v=4 environment/bin/python program.py 2>errors >output) || { cat "$folder/errors" >&2; exit 1; }
    cat "$folder/output"
}

# expect: fail unless the output is what standard input says
expect() {
    if ! diff - "$folder/output" >"$folder/difference"; then
        echo "The behaviour has changed:" >&2
        cat "$folder/difference" >&2
        exit 1
    fi
    echo "$(basename "$0" .sh): as recorded"
}
