"""As in ``.model.layers.norm``: where a variant of the published package has it."""

from ..model.layers.norm import *  # noqa: F403
