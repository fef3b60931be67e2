"""What autograd is told of operations: once by hand, twice by formula, opaque when compiled; and the precision policy."""
