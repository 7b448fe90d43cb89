"""Formats of checkpoints that describe their own shards. Each is one package, listed in `registry`."""
