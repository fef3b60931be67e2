"""In which dtype the compiled CPU operations take features, and return them.

They compute in float32 or float64 (:func:`se3_fast.autograd.compute_dtype.accumulation_dtype`). Features of bfloat16 they read and
write as they are, so that what autograd keeps takes half the memory and nothing is cast between operations.
"""

from __future__ import annotations

import torch

from se3_fast.autograd.compute_dtype import accumulation_dtype


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that features of ``dtype`` are given in: their own, but float32 for float16."""
    return dtype if dtype == torch.bfloat16 else accumulation_dtype(dtype)
