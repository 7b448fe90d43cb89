#!/bin/sh
# The same cluster as the cluster tier's, for tests that would disturb all others in it.
exec sh "$(dirname "$0")/../cluster/prepare.sh"
