"""As in ``.model.transformer``: where a variant of the published package has it."""

from .model.transformer import *  # noqa: F403
