"""Targets: their documents, locks, and the completion of a checkpoint from its stages."""
