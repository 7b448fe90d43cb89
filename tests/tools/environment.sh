# shellcheck shell=sh
# For a prepare.sh to source: an environment of its own for Python packages, in the cache.
scripts=$here/../../scripts
requirements=$here/requirements.txt
cache=${RESHARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/reshard}

# environment MODULE VARIABLE SIZE PYTHON OLDEST [PIP_OPTION...]: print the assignment of VARIABLE to its Python
environment() {
    module=$1 variable=$2 size=$3 python=$4 oldest=$5
    shift 5
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    folder=$cache/$module-$version-$(cksum <"$requirements" | cut -d ' ' -f 1)
    mkdir -p "$folder"
    exec 9>"$folder.lock"
    flock 9 # if two runs start at once, one makes it and the other waits
    if [ ! -e "$folder/.ready" ]; then
        echo "test: installing $module into $folder (about $size, once)" >&2
        sh "$scripts/venv.sh" "$python" "$oldest" "$folder" >&2 || leave_out "its environment cannot be made"
        "$folder/bin/python" -m pip install --quiet "$@" -r "$requirements" >&2 || leave_out "it cannot be installed"
        "$folder/bin/python" -c "import $module" >/dev/null || leave_out "it is installed but cannot be imported"
        touch "$folder/.ready"
    fi
    echo "$variable=$folder/bin/python"
}
