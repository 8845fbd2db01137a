"""Every op of the graph: an eager PyTorch twin in `reference`, a Triton kernel beside it."""
