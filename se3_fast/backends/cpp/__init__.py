"""Backend ``cpp``: the compiled CPU operations of ``csrc/``, and how plans and graphs become calls of them."""
