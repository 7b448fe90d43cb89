"""PyTorch's checkpoints, read without torch: distributed checkpoints (DCP), and archives that `torch.save` writes."""
