#!/bin/sh
# What makes images, and the project's own: as for the tier that runs them. Builds need the network, which a test cluster has not.
exec sh "$(dirname "$0")/../cluster/prepare.sh"
