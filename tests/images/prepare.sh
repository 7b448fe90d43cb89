#!/bin/sh
# Prepare tools that make images, and the project's own, as for the tier that runs them. Builds need the network, which a test
# cluster does not have.
exec sh "$(dirname "$0")/../cluster/prepare.sh"
