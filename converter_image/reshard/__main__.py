"""`python -m reshard`."""

import sys

from reshard.cli import program

sys.exit(program())
