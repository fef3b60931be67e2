"""One file per operation: the choice of backend, and the autograd Functions where a backend needs them."""
