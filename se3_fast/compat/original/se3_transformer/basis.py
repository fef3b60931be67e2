"""As in ``.model.basis``: where a variant of the published package has it."""

from .model.basis import *  # noqa: F403
