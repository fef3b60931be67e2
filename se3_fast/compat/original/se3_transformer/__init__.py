"""The package ``se3_transformer`` with the names and module paths of the published one, computed by ``se3_fast``."""
