"""Transforms: a request is prepared, checked, started, executed and completed."""
