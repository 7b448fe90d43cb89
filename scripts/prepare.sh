#!/bin/sh
# Get what tiers of tests need, one tier after the other: prepare.sh FOLDER TIER...
#
# FOLDER/TIER.variables gets what the tier's prepare.sh prints, and FOLDER/TIER.code its exit code.
set -eu
folder=$1
shift
for tier in "$@"; do
    code=0
    sh "tests/$tier/prepare.sh" >"$folder/$tier.variables" || code=$?
    echo "$code" >"$folder/$tier.code"
done
