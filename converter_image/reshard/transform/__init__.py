"""Transforms: a request is prepared, checked, started, executed and completed."""

# Imported here, where few calls are active, instead of in a nested import. If one of its loops runs at the end of a 16 KiB chunk
# of Python's stack, each call in the loop allocates another chunk: 1,300 times, which took a tenth of the time to start.
import numpy as np  # noqa: F401 - see above
