"""Run the command-line interface with `python -m reshard`."""

import sys

from reshard.cli import program

sys.exit(program())
