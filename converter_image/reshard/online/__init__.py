"""Load one rank into memory, without writing files."""
