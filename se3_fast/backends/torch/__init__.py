"""Backend ``torch``: operations in edge-aligned frames, in plain PyTorch, chunked so that nothing large exists."""
