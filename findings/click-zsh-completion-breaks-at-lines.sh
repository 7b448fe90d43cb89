#!/bin/sh
# click 8.5.1, 2026-11-28
#
# Completions for zsh are printed as three lines each: type, value and help. The help of an option is printed as it is, so help of
# several lines shifts all completions that follow, and zsh drops them without a message. Version 8.4.2 escapes line breaks for fish only.
#
# A good guess: help of any form that --help shows can be completed, as in bash and fish.
set -eu
. "$(dirname "$0")/lib/environment.sh"

install click==8.5.1
observe <<'END'
import os

import click
from click.shell_completion import shell_complete


@click.command()
@click.option("--first", help="Colour.\n\nred or blue")
@click.option("--second", help="Size.")
def program(first, second): ...


os.environ.update(COMP_WORDS="program --", COMP_CWORD="1")
shell_complete(program, {}, "program", "_PROGRAM_COMPLETE", "zsh_complete")
END
expect <<'END'
plain
--first
Colour.

red or blue
plain
--second
Size.
plain
--help
Show this message and exit.
END
