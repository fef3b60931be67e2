"""The operations in plain PyTorch, as published: everything materialised, exact to rounding in any dtype."""
