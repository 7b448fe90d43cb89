#!/bin/sh
# The same cluster as the tier beside it, for tests that everyone in it would notice.
exec sh "$(dirname "$0")/../cluster/prepare.sh"
