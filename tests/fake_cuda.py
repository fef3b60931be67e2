"""CUDA devices that are not there: PyTorch's fake tensors stand for what lies on them, launches are recorded, not carried out.

What the host computes it computes in earnest. Of what reaches a device only shapes, dtypes and devices are known, so that a whole
training step takes seconds; whatever would wait for a device has no answer and is noted.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from triton.runtime.jit import KernelInterface

from se3_fast.autograd import modes
from se3_fast.layers import joint

aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.unique_dim.default,
}
"""What makes the host wait for a device."""

WITHOUT_SHAPES = {aten._fused_adamw_.tensor_lr, aten._fused_sgd_.tensor_lr}
"""Operations in place of which fake tensors know nothing."""

COPIES = {aten._to_copy.default, aten.copy_.default, torch.ops.prims.device_put.default}


class Launch(NamedTuple):
    """A kernel that would have run: its name, its grid, the device that was current and those of its tensors."""

    kernel: str
    grid: tuple[int, ...]
    current: torch.device
    devices: frozenset[torch.device]


class Copy(NamedTuple):
    """A copy from the host: its bytes, and whether the host waits for it, as for all that is not page-locked."""

    num_bytes: int
    waits: bool


class FakeCuda(FakeTensorMode):
    """Two devices.

    Attributes:
        launches: of Triton kernels, in order.
        copies: from the host.
        waits: for what the host would wait; the answer is 0, and where it would count something, there is none of it.
        findings: what would fail on a device.
        is_capturing: whether a CUDA graph is being captured, during which whatever waits is refused, and what comes from the host.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True, static_shapes=True)
        self.launches: list[Launch] = []
        self.copies: list[Copy] = []
        self.page_locked: set[int] = set()
        self.waits: list[str] = []
        self.findings: list[str] = []
        self.is_capturing = False
        self.is_within = False  # an operation of which fake tensors make others
        self.current = 0

    @property
    def avoid_device_init(self) -> bool:
        """Whether PyTorch is to look for no device: ``torch.tensor(.., device="cuda")`` is then a copy from the host."""
        return True

    def begin(self) -> None:
        """Forget what was recorded."""
        self.launches.clear()
        self.copies.clear()
        self.waits.clear()
        self.findings.clear()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.prim.device.default:  # asked by C++ alone, which must not look for a device
            return torch.device("meta", args[0].fake_device.index)
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None and kwargs["device"].type == "meta":  # as C++ has just been told
            kwargs["device"] = torch.device("cuda", kwargs["device"].index)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = kwargs.get("device")
        is_fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if not is_fake and (target is None or torch.device(target).type != "cuda"):
            return self._on_host(function, args, kwargs)
        if function.namespace == "se3_fast":  # what a node of compiled graphs consists of
            with self:
                return OPDEFS[f"se3_fast::{function.overloadpacket.__name__}"]._init_fn(*args, **kwargs)
        if not self.is_within:
            self._check(function, tensors, args, kwargs)
        return self._answer(function, types, args, kwargs)

    def _answer(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """What fake tensors say, or in their place where they say nothing."""
        if function in WITHOUT_SHAPES:
            return None
        if function is aten._local_scalar_dense.default:
            return 0
        if function is aten.nonzero.default:
            with self:
                return args[0].new_empty((0, args[0].dim()), dtype=torch.int64)
        before, self.is_within = self.is_within, True
        try:
            args, kwargs = tree_map(self._as_fake, (args, kwargs))
            return super().__torch_dispatch__(function, types, args, kwargs)
        finally:
            self.is_within = before

    def _on_host(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What does not reach a device; page-locked memory is other memory, of which is known that it was asked for."""
        with no_dispatch():
            if function is aten.is_pinned.default:
                return args[0].data_ptr() in self.page_locked
            if function is not aten._pin_memory.default:
                return function(*args, **kwargs)
            self._refuse_in_capture()
            result = args[0].clone()
            self.page_locked.add(result.data_ptr())
            return result

    def _as_fake(self, value: Any) -> Any:
        """Without its values, of which PyTorch would otherwise keep those of a single number."""
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        return self.fake_tensor_converter.from_real_tensor(self, value)

    def _check(self, function: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> None:
        name = str(function)
        on_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        if function in COPIES:
            self._check_copy(function, args, kwargs)
        elif any(tensor.dim() > 0 for tensor in on_host):
            self.note(f"{name}: a tensor of the host among those of a device")
        if function in WAITING or _counts_on_device(function, args, kwargs):
            self.wait(name)

    def _check_copy(self, function: Any, args: Any, kwargs: Any) -> None:
        name, is_put = str(function), function is torch.ops.prims.device_put.default
        source = args[1] if function is aten.copy_.default else args[0]
        target = torch.device(args[1] if is_put else kwargs.get("device") or args[0].device)
        if source.device.type == "cpu" and target.type == "cuda":
            is_locked = not isinstance(source, FakeTensor) and source.data_ptr() in self.page_locked
            self.copies.append(Copy(source.nbytes, waits=not (is_locked and _is_non_blocking(args, kwargs))))
            self._refuse_in_capture()
        if source.device.type == "cuda" and target.type == "cpu":
            self.wait(name)

    def wait(self, name: str) -> None:
        """Keep that the host waits, and from where; a capture fails by it."""
        self.waits.append(f"{name} ({_place()})")
        self._refuse_in_capture()

    def _refuse_in_capture(self) -> None:
        if self.is_capturing:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def note(self, finding: str) -> None:
        """Keep a finding, with the place in the package that it comes from."""
        self.findings.append(f"{finding} ({_place()})")

    def launch(self, kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        """In place of ``kernel[grid]``."""

        def record(*arguments: Any, **_: Any) -> None:
            tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
            name = f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"
            devices = frozenset(tensor.device for tensor in tensors)
            current = torch.device("cuda", self.current)
            if devices != {current}:
                self.note(f"{name}: tensors on {sorted(map(str, devices))}, launched on {current}")
            self.launches.append(Launch(name, grid, current, devices))

        return record

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        """In place of ``torch.cuda.device``."""
        before, self.current = self.current, _index(device)
        yield
        self.current = before

    @contextmanager
    def graph(self, *_: Any, **__: Any) -> Iterator[None]:
        """In place of ``torch.cuda.graph``."""
        self.is_capturing = True
        try:
            yield
        finally:
            self.is_capturing = False

    def synchronize(self, *_: Any) -> None:
        """In place of ``torch.cuda.synchronize``."""
        self.wait("torch.cuda.synchronize")

    def put(self, value: Any, device: str = "cuda:0") -> Any:
        """A tensor on a device, or a named tuple, dict or dataclass with its tensors there; what is neither stays what it is."""
        if isinstance(value, Tensor):
            fake = self.fake_tensor_converter.from_real_tensor(self, value)
            with self:
                return fake.to(device)
        if isinstance(value, dict):
            return {key: self.put(item, device) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self.put(item, device) for item in value))
        if dataclasses.is_dataclass(value):
            fields = {field.name: self.put(getattr(value, field.name), device) for field in dataclasses.fields(value)}
            return dataclasses.replace(value, **fields)
        return value


def _is_non_blocking(args: Any, kwargs: Any) -> bool:
    """Of a copy, whose third argument that is, but for ``_to_copy``."""
    return bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))


def _counts_on_device(function: Any, args: Any, kwargs: Any) -> bool:
    """Whether the size of a result is known on the device alone."""
    if function is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return False


def _index(device: Any) -> int:
    index = device if isinstance(device, int) else torch.device(device).index
    return 0 if index is None else index


def _place() -> str:
    """The line of the package that is running."""
    frames = traceback.extract_stack()
    lines = [f"{frame.filename.rpartition('/se3_fast/')[2]}:{frame.lineno}" for frame in frames if "/se3_fast/" in frame.filename]
    return lines[-1] if lines else "outside of the package"


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Two CUDA devices of compute capability 9.0, for all of PyTorch and this package."""
    cuda = FakeCuda()
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=cuda.synchronize, cuda_stream=0)

    def launched(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        return cuda.launch(kernel, grid)

    functions = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: cuda.current,
        "device": cuda.device,
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": lambda *_: (1 << 37, 1 << 37),
        "synchronize": cuda.synchronize,
        "Stream": lambda *_: stream,
        "current_stream": lambda *_: stream,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": cuda.graph,
        "graph_pool_handle": lambda: None,
        "is_current_stream_capturing": lambda: cuda.is_capturing,
    }
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(patch.object(torch.cuda, name, function))
        # What is kept is kept of fake tensors too, and made where the mode of this file is on.
        stack.enter_context(patch.object(modes, "_disable_current_modes", nullcontext))
        is_plain = modes._is_plain
        stack.enter_context(patch.object(modes, "_is_plain", lambda tensor: type(tensor) is FakeTensor or is_plain(tensor)))
        stack.enter_context(patch.object(joint, "Tensor", FakeTensor))  # what it takes for an ordinary parameter
        stack.enter_context(patch.object(KernelInterface, "__getitem__", launched))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(cuda)
        yield cuda
