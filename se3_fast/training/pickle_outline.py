"""What a pickle of tensors and plain values asks for, found out without doing it.

`torch.load(weights_only=True)` runs no code from a file, but depending on its version it allocates what sizes in the file say, or
reads past the bytes that are there. So the sizes are compared with the file first. The outline of a pickle is drawn by the
operations on a stack that unpickling consists of; of most objects only the kind is remembered.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, BinaryIO

from se3_fast.error_text import one_line

_ITEM_SIZES = {
    **dict.fromkeys(("Bool", "Byte", "Char"), 1),
    **dict.fromkeys(("Short", "Half", "BFloat16"), 2),
    **dict.fromkeys(("Int", "Float"), 4),
    **dict.fromkeys(("Long", "Double", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
_STORAGES = {f"torch {name}Storage": size for name, size in _ITEM_SIZES.items()}
_TENSOR_MAKERS = {"torch._utils _rebuild_tensor": 4, "torch._utils _rebuild_tensor_v2": 6}
"""Names of functions, and how many arguments they take: a storage, offset, sizes and strides first."""

_PARAMETER_MAKER = "torch._utils _rebuild_parameter"
_CONTAINERS = ("collections OrderedDict", "collections Counter", "__builtin__ set", "builtins set", "torch Size")
_VALUES = ("__builtin__ complex", "builtins complex", "torch device")
_TYPES = (
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)
_KNOWN = {*_STORAGES, *_TENSOR_MAKERS, _PARAMETER_MAKER, *_CONTAINERS, *_VALUES, *(f"torch {name}" for name in _TYPES)}


class OutlineError(ValueError):
    """A pickle is damaged, or asks for what the file does not hold."""


class ForeignObjectError(OutlineError):
    """A pickle holds other objects than tensors and plain values."""


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names, as `module name`."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Memory that tensors lie in: the key of its bytes, the size of an item, the number of items."""

    key: str
    item_size: int
    items: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.item_size * self.items


class Kind(Enum):
    """All that is remembered of other objects, unless they are plain values or tuples."""

    CONTAINER = auto()
    TENSOR = auto()
    VALUE = auto()


class Outline:
    """Goes through the pickles of one file.

    Args:
        largest_tensor: Bytes that a tensor may have.
        check_storage: Called with every storage when it is named first; raises `OutlineError` if the file does not hold it.

    Raises:
        OutlineError: From `draw`; a pickle asks for something that is not there.
    """

    def __init__(self, largest_tensor: int, check_storage: Callable[[Storage], None]) -> None:
        self._largest_tensor = largest_tensor
        self._check_storage = check_storage
        self._storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def draw(self, stream: BinaryIO) -> None:
        """Go through one pickle; the stream stands behind it then."""
        self._stack, self._below_marks, self._memo = [], [], {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return
                if opcode.name not in _OPERATIONS:
                    raise ForeignObjectError(f"operation {opcode.name}")
                _OPERATIONS[opcode.name](self, argument)
        except OutlineError:
            raise
        except Exception as error:  # of an operation without what it needs on the stack, or of arguments that are no arguments
            raise OutlineError(one_line(error)) from error

    def _check_protocol(self, version: int) -> None:
        if version != 2:
            raise OutlineError(f"expected protocol 2, got {version}")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self, _: None) -> None:
        self._below_marks.append(self._stack)
        self._stack = []

    def _pop_to_mark(self, _: None = None) -> list[Any]:
        values, self._stack = self._stack, self._below_marks.pop()
        return values

    def _push_tuple_to_mark(self, _: None) -> None:
        values = self._pop_to_mark()
        self._push(tuple(values))

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise OutlineError(f"expected {count} objects on the stack, got {len(self._stack)}")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _recall(self, number: int) -> None:
        self._push(self._memo[number])

    def _push_global(self, name: str) -> None:
        if name not in _KNOWN:
            raise ForeignObjectError(name)
        self._push(Global(name))

    def _call(self, _: None) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise OutlineError("calls what is no function, or without arguments")
        if function.name in _TENSOR_MAKERS:
            self._check_tensor(_TENSOR_MAKERS[function.name], *arguments)
            self._push(Kind.TENSOR)
        elif function.name == _PARAMETER_MAKER:
            if arguments[0] is not Kind.TENSOR:
                raise OutlineError("a parameter is no tensor")
            self._push(Kind.TENSOR)
        elif function.name in _CONTAINERS:
            self._push(Kind.CONTAINER)
        elif function.name in _VALUES:
            self._push(Kind.VALUE)
        else:
            raise ForeignObjectError(f"a call of {function.name}")

    def _set_attributes(self, _: None) -> None:
        """Dictionaries with order carry a dictionary of attributes, which modules keep the versions of their parts in."""
        target, attributes = self._pop(2)
        if target is not Kind.CONTAINER or attributes is not Kind.CONTAINER:
            raise OutlineError("sets attributes of what has none")
        self._push(target)

    def _push_storage(self, _: None) -> None:
        (identity,) = self._pop(1)
        # The old format has a sixth part, for storages that are parts of others; these went out of use in 2017.
        word, kind, key, _, items, *part = identity
        if word != "storage" or not isinstance(key, str) or type(items) is not int or items < 0 or part not in ([], [None]):
            raise OutlineError(f"expected a storage, got {identity!r:.100}")
        storage = Storage(key, _STORAGES[kind.name], items)
        if key not in self._storages:
            self._check_storage(storage)
            self._storages[key] = storage
        if self._storages[key] != storage:
            raise OutlineError(f"names storage {key!r} with two sizes")
        self._push(storage)

    def _check_tensor(self, count: int, storage: Any, offset: Any, sizes: Any, strides: Any, *others: Any) -> None:
        is_complete = len(others) == count - 4 and others[1:] in ((), (Kind.CONTAINER,))
        if not is_complete or not isinstance(storage, Storage) or len(sizes) != len(strides):
            raise OutlineError("expected a storage, offset, sizes and strides of a tensor")
        if any(type(number) is not int or not 0 <= number < 2**62 for number in (offset, *sizes, *strides)):
            raise OutlineError(f"expected offset, sizes and strides from 0 on, got {(offset, sizes, strides)!r:.100}")
        numel, last = 1, offset
        for size, stride in zip(sizes, strides, strict=True):
            numel *= size
            last += (size - 1) * stride
        if (last >= storage.items if numel else offset > storage.items) or numel * storage.item_size > self._largest_tensor:
            raise OutlineError(f"a tensor of sizes {list(sizes)} is larger than its storage of {storage.items} items")


_OPERATIONS: dict[str, Callable[[Outline, Any], Any]] = {
    "PROTO": Outline._check_protocol,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"), Outline._push),
    "NONE": lambda outline, _: outline._push(None),
    "NEWTRUE": lambda outline, _: outline._push(True),
    "NEWFALSE": lambda outline, _: outline._push(False),
    **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"), lambda outline, _: outline._push(Kind.CONTAINER)),
    "EMPTY_TUPLE": lambda outline, _: outline._push(()),
    "MARK": Outline._mark,
    "TUPLE": Outline._push_tuple_to_mark,
    "TUPLE1": lambda outline, _: outline._push(tuple(outline._pop(1))),
    "TUPLE2": lambda outline, _: outline._push(tuple(outline._pop(2))),
    "TUPLE3": lambda outline, _: outline._push(tuple(outline._pop(3))),
    "APPEND": lambda outline, _: outline._pop(1),
    "SETITEM": lambda outline, _: outline._pop(2),
    **dict.fromkeys(("APPENDS", "SETITEMS"), Outline._pop_to_mark),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), Outline._remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), Outline._recall),
    "GLOBAL": Outline._push_global,
    "REDUCE": Outline._call,
    "BUILD": Outline._set_attributes,
    "BINPERSID": Outline._push_storage,
}
