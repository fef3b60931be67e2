"""Message and reduce functions."""

from se3_fast.compat.message_passing.function import *  # noqa: F403
