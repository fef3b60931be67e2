"""One folder per backend, one file per operation in each; nothing outside knows a backend by name."""
