"""The story: a request is prepared, checked, begun, written and completed."""
