"""As in ``.model.fiber``: where a variant of the published package has it."""

from .model.fiber import *  # noqa: F403
