#!/bin/sh
# Get what tiers of tests need, one tier after the other: prepare.sh FOLDER TIER[@KUBERNETES]...
#
# FOLDER/TIER.variables gets what the tier's prepare.sh prints, and FOLDER/TIER.code its exit code.
set -eu
folder=$1
shift
for tier in "$@"; do
    code=0
    case $tier in
        *@*) K8S=${tier#*@} sh "tests/${tier%@*}/prepare.sh" >"$folder/$tier.variables" || code=$? ;;
        *) sh "tests/$tier/prepare.sh" >"$folder/$tier.variables" || code=$? ;;
    esac
    echo "$code" >"$folder/$tier.code"
done
