"""What a target looks like while it is written, who may write to it, and how its parts become one checkpoint."""
