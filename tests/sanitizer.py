"""Triton's interpreter as a sanitizer: it runs the programs of a launch in no particular order, and watches their memory.

Programs run in a random order or backwards, another one at every launch, so that two runs to the last bit mean something. What a
masked load leaves undefined is NaN, or a large number. No access is outside of the launch's tensors; one that would be is noted and
left out. Of every address of a launch it is known who has written and who has read it: no program reads or writes what another
one writes, and no program touches again what it has written, or writes what it has read, unless a barrier stands between: on a GPU
other threads may do it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PAGE = 512
JUNK = 2**14 + 12345
BFLOAT16_NAN = 0x7FC0
"""As the interpreter keeps numbers of that type."""

EPOCHS = 2**16
"""Barriers of a program at most."""

Addresses = NDArray[np.int64]


class Spans:
    """The memory of some tensors: all that was allocated with them, as a kernel may be given the first of several slabs."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        storages = [tensor.untyped_storage() for tensor in tensors]
        merged: list[list[int]] = []
        for start, end in sorted((storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages):
            if merged and start < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        self.starts, self.ends = np.array(merged, dtype=np.int64).reshape(-1, 2).T
        self.offsets = np.concatenate([[0], np.cumsum(self.ends - self.starts)])

    def places(self, addresses: Addresses, size: int) -> tuple[Addresses, NDArray[np.bool_]]:
        """Which accesses are inside, and where: bytes from the beginning of the first tensor, as if all lay side by side."""
        if len(self.starts) == 0:
            return addresses[:0], np.zeros(len(addresses), dtype=bool)
        span = np.searchsorted(self.starts, addresses, side="right") - 1
        is_inside = (span >= 0) & (addresses + size <= self.ends[span])
        span = span[is_inside]
        return self.offsets[span] + addresses[is_inside] - self.starts[span], is_inside


class Shadow:
    """Who has written and read each byte of a launch, in pages that are made when they are touched.

    A program is known by its number, from 1; an access by that and the barriers that its program has passed.
    """

    FIELDS = ("written", "read", "first_reader", "last_reader")

    def __init__(self, num_bytes: int) -> None:
        self.pages = np.full(num_bytes // PAGE + 1, -1, dtype=np.int64)
        self.num_pages = 0
        self.fields = {name: np.zeros(0, dtype=np.int64) for name in self.FIELDS}

    def _rows(self, places: Addresses) -> Addresses:
        page = places // PAGE
        new = np.unique(page[self.pages[page] < 0])
        self.pages[new] = np.arange(self.num_pages, self.num_pages + len(new))
        self.num_pages += len(new)
        if self.num_pages * PAGE > len(self.fields["written"]):
            room = 2 * self.num_pages * PAGE
            for name, values in self.fields.items():
                self.fields[name] = np.concatenate([values, np.zeros(room - len(values), dtype=np.int64)])
        return self.pages[page] * PAGE + places % PAGE

    def load(self, places: Addresses, program: int, epoch: int) -> list[str]:
        """Note a load; what is wrong with it."""
        rows, now = self._rows(places), program * EPOCHS + epoch
        fields = self.fields
        written = fields["written"][rows]
        found = []
        if ((written > 0) & (written // EPOCHS != program)).any():
            found.append("a program reads what another one writes")
        if (written == now).any():
            found.append("a program reads what it has written, without a barrier")
        first = fields["first_reader"][rows]
        fields["first_reader"][rows] = np.where(first == 0, program, np.minimum(first, program))
        fields["last_reader"][rows] = np.maximum(fields["last_reader"][rows], program)
        fields["read"][rows] = now
        return found

    def store(self, places: Addresses, program: int, epoch: int) -> list[str]:
        """Note a store; what is wrong with it."""
        rows, now = self._rows(places), program * EPOCHS + epoch
        fields = self.fields
        written, first, last = (fields[name][rows] for name in ("written", "first_reader", "last_reader"))
        found = []
        if len(np.unique(rows)) < len(rows):
            found.append("one store writes an address twice")
        if ((written > 0) & (written // EPOCHS != program)).any():
            found.append("two programs write one address")
        if (written == now).any():
            found.append("a program writes what it has written, without a barrier")
        if ((first > 0) & ((first != program) | (last != program))).any():
            found.append("a program writes what another one reads")
        if (fields["read"][rows] == now).any():
            found.append("a program writes what it has read, without a barrier")
        fields["written"][rows] = now
        return found


class Sanitizer:
    """What is known of the launch that runs now, and what was found since the last test began."""

    def __init__(self) -> None:
        self.begin_test()

    def begin_test(self) -> None:
        """Forget what was found; the orders of the programs begin anew, so that a test can be run again by itself."""
        self.findings: dict[str, int] = {}
        self.num_launches = 0
        self.spans: Spans | None = None

    def begin_launch(self, tensors: Iterable[Tensor]) -> None:
        """A launch on these tensors."""
        self.num_launches += 1
        self.spans = Spans(tensors)
        self.shadow = Shadow(int(self.spans.offsets[-1]))
        self.program = self.epoch = 0

    def end_launch(self) -> None:
        """Whatever reads memory from now on is no program."""
        self.spans = None

    def order(self, num_programs: int) -> NDArray[np.int64]:
        """In which the programs run: random at every other launch, else backwards."""
        if self.num_launches % 2 == 0:
            return np.arange(num_programs)[::-1]
        return np.random.default_rng(self.num_launches).permutation(num_programs)

    def access(self, pointers: Any, mask: NDArray[Any], is_store: bool) -> NDArray[np.bool_]:
        """Check an access of the program that runs now; the mask of what may be carried out."""
        chosen = np.broadcast_to(mask, pointers.data.shape).astype(bool)
        addresses = pointers.data[chosen].astype(np.int64)
        if self.spans is None or len(addresses) == 0:
            return chosen
        kind = "store" if is_store else "load"
        places, is_inside = self.spans.places(addresses, max(pointers.get_element_ty().primitive_bitwidth // 8, 1))
        if not is_inside.all():
            self.note(f"a {kind} outside of all tensors")
            chosen[chosen] = is_inside
        note = self.shadow.store if is_store else self.shadow.load
        for finding in note(places, self.program, self.epoch):
            self.note(finding)
        return chosen

    def note(self, finding: str) -> None:
        """Keep a finding, with the lines of the kernel that it comes from."""
        where = f"{finding}: {_lines_of_kernel()}"
        self.findings[where] = self.findings.get(where, 0) + 1


def _lines_of_kernel() -> str:
    frame: Any = sys._getframe()
    frames = []
    while frame is not None:
        frames.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if is_kernel(frame.f_code.co_filename) else "")
        frame = frame.f_back
    return " < ".join(islice(filter(None, frames), 3))


def is_kernel(file: str) -> bool:
    """Whether a file holds kernels."""
    return Path(file).parent.name == "kernels" or Path(file).name.startswith("test_sanitizer")


def undefined_of(element: Any, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """What a masked load leaves where it has no value: NaN, or a number that is no index."""
    if np.issubdtype(dtype, np.floating):
        return np.full(shape, np.nan, dtype=dtype)
    return np.full(shape, BFLOAT16_NAN if element.is_bf16() else min(JUNK, np.iinfo(dtype).max), dtype=dtype)


def install(sanitizer: Sanitizer) -> None:
    """From now on the interpreter asks a sanitizer."""
    from triton.runtime import interpreter

    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    if getattr(executor, "sanitizer", None) is not None:
        executor.sanitizer = sanitizer
        return
    executor.sanitizer = sanitizer
    launch, arguments_of = executor.__call__, executor._init_args_hst
    set_grid, set_place = builder.set_grid_dim, builder.set_grid_idx
    masked_load, masked_store, barrier = builder.create_masked_load, builder.create_masked_store, builder.create_barrier
    current = {}

    def watched_launch(self: Any, *arguments: Any, **constants: Any) -> None:
        try:
            launch(self, *arguments, **constants)
        finally:
            executor.sanitizer.end_launch()

    def watched_arguments(self: Any, arguments: Any, constants: Any) -> Any:
        on_host = arguments_of(self, arguments, constants)
        executor.sanitizer.begin_launch(tensors_of(on_host[0]))
        return on_host

    def watched_grid(self: Any, *dimensions: int) -> None:
        set_grid(self, *dimensions)
        current["order"] = executor.sanitizer.order(int(np.prod(dimensions)))
        current["dimensions"] = dimensions

    def other_place(self: Any, *place: int) -> None:
        number = current["order"][np.ravel_multi_index(place, current["dimensions"])]
        executor.sanitizer.program, executor.sanitizer.epoch = int(number) + 1, 0
        set_place(self, *map(int, np.unravel_index(number, current["dimensions"])))

    def watched_load(self: Any, pointers: Any, mask: Any, other: Any, *options: Any) -> Any:
        chosen, element = executor.sanitizer.access(pointers, mask.data, is_store=False), pointers.get_element_ty()
        if other is None and not chosen.all():
            undefined = undefined_of(element, interpreter._get_np_dtype(element), pointers.data.shape)
            other = interpreter.TensorHandle(undefined, element)
        return masked_load(self, pointers, interpreter.TensorHandle(chosen, mask.dtype), other, *options)

    def watched_store(self: Any, pointers: Any, value: Any, mask: Any, *options: Any) -> Any:
        chosen = executor.sanitizer.access(pointers, mask.data, is_store=True)
        return masked_store(self, pointers, value, interpreter.TensorHandle(chosen, mask.dtype), *options)

    def watched_barrier(self: Any, *options: Any) -> None:
        executor.sanitizer.epoch += 1
        barrier(self, *options)

    executor.__call__, executor._init_args_hst = watched_launch, watched_arguments
    builder.set_grid_dim, builder.set_grid_idx = watched_grid, other_place
    builder.create_masked_load, builder.create_masked_store, builder.create_barrier = watched_load, watched_store, watched_barrier


def tensors_of(value: Any) -> Iterable[Tensor]:
    """The tensors among arguments, which may be tuples of arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(getattr(value, "base", None), torch.Tensor):
        yield value.base


SANITIZER = Sanitizer()
"""Whose findings fail the test that has them (tests/conftest.py)."""
