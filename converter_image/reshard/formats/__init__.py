"""Checkpoint formats of other frameworks, one package for each: they read by range and describe what they find as a model."""
