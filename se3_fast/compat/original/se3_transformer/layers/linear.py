"""As in ``.model.layers.linear``: where a variant of the published package has it."""

from ..model.layers.linear import *  # noqa: F403
