"""Checkpoints of Hugging Face libraries: whole tensors in safetensors files."""
