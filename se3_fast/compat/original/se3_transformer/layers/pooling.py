"""As in ``.model.layers.pooling``: where a variant of the published package has it."""

from ..model.layers.pooling import *  # noqa: F403
