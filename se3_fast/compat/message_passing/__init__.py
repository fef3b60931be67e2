"""Message passing on :class:`se3_fast.Graph` with the names and meanings that DGL has for it; differentiable, in plain PyTorch.

What :mod:`se3_fast.compat.dgl` is made of. Graphs have one type of nodes and one of edges.
"""
