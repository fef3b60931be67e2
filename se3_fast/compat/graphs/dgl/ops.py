"""Operations on edges and incoming edges."""

from se3_fast.compat.message_passing.ops import *  # noqa: F403
