"""As in ``.runtime.utils``: where a variant of the published package has it."""

from .runtime.utils import *  # noqa: F403
