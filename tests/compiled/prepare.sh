#!/bin/sh
# Get the real MindSpore, as the conformance tier has it.
exec sh "$(dirname "$0")/../conformance/prepare.sh"
