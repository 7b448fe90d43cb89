#!/bin/sh
# Get a Python of Debian's next release, with its libraries, into the cache and print its path: debian_python.sh VERSION
#
# Nothing is installed: the packages are unpacked, and Python is started with their loader. Fails if this machine is not Debian or
# the release does not have the version.
set -eu
version=$1
suite=forky
case $version in 3.13 | 3.14) ;; *) exit 1 ;; esac
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || exit 1

cache=${RESHARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/reshard}
folder=$cache/python$version-$suite
if [ ! -d "$folder" ]; then
    mirror() { apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' | sed -n 's/^Debian Debian //p' | head -n 1; }
    # The lists of a fresh machine are empty.
    [ -n "$(mirror)" ] || apt-get update -qq >&2 || exit 1
    mkdir -p "$cache"
    new=$(mktemp -d "$folder.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    mkdir -p "$new/apt/lists/partial" "$new/apt/archives/partial"
    echo "deb $(mirror) $suite main" >"$new/apt/sources"
    : >"$new/apt/status"  # of a machine without packages, so that every library is fetched
    apt() {
        apt-get -qq -o Dir::Etc::sourcelist="$new/apt/sources" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$new/apt/lists" \
            -o Dir::State::status="$new/apt/status" -o Dir::Cache="$new/apt" -o APT::Sandbox::User="$(id -un)" "$@" >&2 || exit 1
    }
    apt update
    apt --yes --no-install-recommends --download-only install "python$version-venv" libstdc++6
    for package in "$new"/apt/archives/*.deb; do dpkg-deb -x "$package" "$new"; done
    rm -rf "$new/apt" "$new/usr/share/doc" "$new/usr/share/man"
    mv "$new/usr/bin/python$version" "$new/usr/bin/python$version.elf"
    libraries=$(basename "$(dirname "$(echo "$new"/usr/lib/*/ld-linux-*.so.*)")")
    loader=$(basename "$(echo "$new/usr/lib/$libraries"/ld-linux-*.so.*)")
    # By its argument 0 Python finds the environment that it was started from.
    cat >"$new/usr/bin/python$version" <<END
#!/bin/sh
root='$folder/usr'
exec "\$root/lib/$libraries/$loader" --library-path "\$root/lib/$libraries" --argv0 "\$0" "\$root/bin/python$version.elf" "\$@"
END
    chmod 755 "$new" "$new/usr/bin/python$version"
    mv -T "$new" "$folder" 2>/dev/null || [ -d "$folder" ]  # another run may have been first
fi
"$folder/usr/bin/python$version" -c 'import venv'
echo "$folder/usr/bin/python$version"
