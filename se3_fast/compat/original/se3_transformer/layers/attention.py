"""As in ``.model.layers.attention``: where a variant of the published package has it."""

from ..model.layers.attention import *  # noqa: F403
