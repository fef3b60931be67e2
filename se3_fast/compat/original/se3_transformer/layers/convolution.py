"""As in ``.model.layers.convolution``: where a variant of the published package has it."""

from ..model.layers.convolution import *  # noqa: F403
