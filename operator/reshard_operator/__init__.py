"""The operator: watches CheckpointTransform resources and runs their steps as Jobs."""
