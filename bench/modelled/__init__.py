"""What a step would take on a GPU, by a static model that needs none: ``python -m bench.modelled``."""
