"""Whether a module does what its class does: what is computed at once for many modules asks first."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether calling a module is what ``kind`` does, with no hook on it."""
    is_kind = type(module) is kind or (isinstance(module, kind) and type(module).forward is kind.forward)
    return is_kind and is_called_plainly(module)  # type: ignore[arg-type]


def is_called_plainly(module: nn.Module) -> bool:
    """Whether to call a module is to call the method ``forward`` of its class."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return not (hooks or _has_any_global_hook() or "forward" in module.__dict__)
