# shellcheck shell=sh
# To be sourced. exported LINES: export what a prepare.sh has printed, NAME=value a line.
exported() {
    while IFS= read -r line; do
        case $line in *=*) export "${line?}" ;; esac
    done <<END
$1
END
}
