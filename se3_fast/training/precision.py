"""Automatic mixed precision: which type, and whether the loss is scaled."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .options import AMP_DTYPES

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Precision of the forward pass.

    Attributes:
        device_type: 'cpu', 'cuda', ...
        dtype: Type of autocast; None computes in the model's own type.
    """

    device_type: str
    dtype: torch.dtype | None = None

    @classmethod
    def choose(cls, amp: bool, amp_dtype: str, device: torch.device) -> Precision:
        """Precision that the options `amp` and `amp_dtype` ask for.

        Raises:
            ValueError: Unknown `amp_dtype`.
        """
        if amp_dtype not in AMP_DTYPES:
            raise ValueError(f"amp_dtype: expected one of {', '.join(AMP_DTYPES)}, got {amp_dtype!r}")
        if not amp:
            return cls(device.type)
        if amp_dtype == "auto":
            amp_dtype = "fp16" if device.type == "cuda" else "bf16"
        return cls(device.type, _DTYPES[amp_dtype])

    def autocast(self) -> torch.autocast:
        """Context of the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which only fp16 needs; for other types it does nothing."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype is torch.float16)
