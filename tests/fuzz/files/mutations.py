"""How files go wrong: at random bytes, in the directory of a zip archive, in the header of an array, in the values of arrays."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

Arrays = dict[str, np.ndarray]

_WORDS = (b"\xff" * 8, b"\xff" * 4, b"\xff" * 7 + b"\x7f", b"\xff" * 3 + b"\x7f", bytes(8), bytes(7) + b"\x80", bytes(3) + b"\x80")
_TEXTS = (
    *("nan", "inf", "-inf", "1e300", "1e999", "-5", "999999999999", "1_0", "0x10"),
    *("", " ", "\t", '"', ",", "\0", "é", "\n", "$$$$\n", "M  END\n"),
)


def flip_bit(numbers: random.Random, content: bytes) -> bytes:
    """One bit of a file turned over: what a checksum is for."""
    changed = bytearray(content)
    changed[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
    return bytes(changed)


def _set_bytes(numbers: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(numbers.randint(1, 6)):
        changed[numbers.randrange(len(changed))] = numbers.randrange(256)
    return bytes(changed)


def _set_word(numbers: random.Random, content: bytes) -> bytes:
    word = numbers.choice(_WORDS)
    place = numbers.randrange(max(1, len(content) - len(word)))
    return content[:place] + word + content[place + len(word) :]


def _chunk(numbers: random.Random, content: bytes) -> tuple[int, int]:
    start = numbers.randrange(len(content))
    return start, min(len(content), start + numbers.choice((1, 2, 8, 64, 512, 4096)))


def _truncate(numbers: random.Random, content: bytes) -> bytes:
    return content[: numbers.randrange(len(content))]


def _delete(numbers: random.Random, content: bytes) -> bytes:
    start, stop = _chunk(numbers, content)
    return content[:start] + content[stop:]


def _insert(numbers: random.Random, content: bytes) -> bytes:
    place = numbers.randrange(len(content) + 1)
    return content[:place] + numbers.randbytes(numbers.choice((1, 2, 8, 64, 512))) + content[place:]


def _duplicate(numbers: random.Random, content: bytes) -> bytes:
    start, stop = _chunk(numbers, content)
    return content[:stop] + content[start:stop] + content[stop:]


def _move(numbers: random.Random, content: bytes) -> bytes:
    start, stop = _chunk(numbers, content)
    rest, place = content[:start] + content[stop:], numbers.randrange(len(content) - (stop - start) + 1)
    return rest[:place] + content[start:stop] + rest[place:]


def _clear(numbers: random.Random, content: bytes) -> bytes:
    start, stop = _chunk(numbers, content)
    return content[:start] + bytes(stop - start) + content[stop:]


BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip_bit, flip_bit, _set_bytes, _set_word, _truncate, _delete, _insert, _duplicate, _move, _clear,
)  # fmt: skip


def change_bytes(numbers: random.Random, content: bytes) -> bytes:
    """A file that was damaged somewhere."""
    return numbers.choice(BYTES)(numbers, content)


def change_text(numbers: random.Random, content: bytes) -> bytes:
    """A text in which a word has become another, or that was damaged as any file."""
    if numbers.random() < 0.3:
        return change_bytes(numbers, content)
    lines = content.decode().splitlines(keepends=True)
    line = numbers.randrange(len(lines))
    if numbers.random() < 0.3:
        others = numbers.choice(([], [lines[line]] * 2, ["".join(numbers.choices(_TEXTS, k=3))]))
        return "".join((*lines[:line], *others, *lines[line + 1 :])).encode()
    separator = "," if "," in lines[line] else " "
    words = lines[line].split(separator)
    word, new = numbers.randrange(len(words)), numbers.choice(_TEXTS)
    # Columns of an sdf have their places.
    words[word] = new.rjust(len(words[word])) if separator == " " else new
    lines[line] = separator.join(words)
    return "".join(lines).encode()


# Zip archives.


def members(content: bytes) -> dict[str, bytes]:
    """What an archive holds, by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of members, some of which may have the same name."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, member in entries:
            archive.writestr(zipfile.ZipInfo(name), member, method)
    return stream.getvalue()


_CENTRAL = {"flags": (8, "H"), "method": (10, "H"), "crc": (16, "I"), "packed": (20, "I"), "unpacked": (24, "I"), "at": (42, "I")}
_LOCAL = {"flags": (6, "H"), "method": (8, "H"), "crc": (14, "I"), "packed": (18, "I"), "unpacked": (22, "I")}
"""Where the fields of a member stand in the directory and before its bytes, and of which type."""


def lie_in_directory(numbers: random.Random, content: bytes) -> bytes:
    """An archive whose directory, and sometimes the header before the bytes too, says something else of a member than it said."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        directory, infos = archive.start_dir, archive.infolist()
    changed, number = bytearray(content), numbers.randrange(len(infos))
    entry = directory
    for _ in range(number):
        entry += 46 + sum(struct.unpack_from("<HHH", content, entry + 28))
    field = numbers.choice(list(_CENTRAL))
    lies = {"flags": (0x1, 0x9, 0x20, 0x40, 0x41, 0x2000), "method": (1, 6, 8, 9, 12, 14, 93, 99, 0)}
    value = numbers.choice(lies.get(field, (0, 1, 1 << 30, 0x7FFFFFFF, 0xFFFFFFFF, numbers.choice(infos).header_offset)))
    place, kind = _CENTRAL[field]
    struct.pack_into(f"<{kind}", changed, entry + place, value)
    if field in _LOCAL and numbers.random() < 0.5:
        place, kind = _LOCAL[field]
        struct.pack_into(f"<{kind}", changed, infos[number].header_offset + place, value)
    return bytes(changed)


def change_archive(numbers: random.Random, content: bytes) -> bytes:
    """An archive whose members were packed, named, repeated, dropped or exchanged in another way."""
    entries = list(members(content).items())
    place = numbers.randrange(len(entries))
    name, member = entries[place]
    other = numbers.choice(entries)[1]
    kind = numbers.randrange(10)
    if kind == 0:
        return archive_of(entries, numbers.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    if kind == 1:
        return archive_of(entries, zipfile.ZIP_DEFLATED)
    if kind == 2:
        return archive_of([*entries, (name, numbers.choice((member, other, b"")))])
    if kind == 3:
        return archive_of(entries[:place] + entries[place + 1 :])
    if kind == 4:
        new = numbers.choice(("", "../" + name, name.upper(), name + "\0x", "a/" + name, name.rsplit(".", 1)[0], "é.npy"))
        entries[place] = (new, member)
        return archive_of(entries)
    if kind == 5:
        half, inner = member[: len(member) // 2], archive_of(entries[:1])
        entries[place] = (name, numbers.choice((b"", b"no array", other, half, member + bytes(9), inner)))
        return archive_of(entries)
    if kind == 6:
        entries[place] = (name, member + bytes(numbers.choice((1 << 16, 1 << 24, 1 << 27))))
        return archive_of(entries, zipfile.ZIP_DEFLATED)
    if kind == 7:
        entries[place] = (name, change_bytes(numbers, member) if member else b"x")
        return archive_of(entries, zipfile.ZIP_DEFLATED)
    if kind == 8:
        noise = numbers.randbytes(100)
        return numbers.choice((b"PK\x05\x06" + bytes(18), content + content, noise + content, content + noise))
    return lie_in_directory(numbers, content)


# Arrays.


def array_bytes(array: np.ndarray, allow_pickle: bool = True) -> bytes:
    """An array as `.npy`."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def archive_of_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as an archive, those of objects pickled."""
    return archive_of([(f"{name}.npy", array_bytes(array)) for name, array in arrays.items()], zipfile.ZIP_DEFLATED)


_SHAPES = (
    *("(1000000000000,)", "(9999999999999999999999,)", "(0, 4611686018427387904)", "(1,)*9"),
    *("(-1,)", "(True,)", "(2.5,)", "('a',)", "()", "(3,", "None", "[4]"),
)
_TYPES = (
    *("'|O'", "'<U9'", "'|S4'", "'<c16'", "'|V8'", "'<U0'", "'>f8'", "'<f2'", "'|b1'", "'<u8'", "'<M8[s]'"),
    *("'nope'", "[('a', '<f4')]", "None", "('<f4', (2,))", "(" * 200),
)
_HEADERS = (b"{", b"{}", b"[" * 5000, b"9" * 5000, b"x" * 60000, b"__import__('os')", b"\xff", b"")


def lie_in_header(numbers: random.Random, arrays: Mapping[str, np.ndarray]) -> bytes:
    """An archive in which an array says something else of itself than it is."""
    entries = [(name, array_bytes(array)) for name, array in arrays.items()]
    place = numbers.randrange(len(entries))
    name, array = list(arrays.items())[place]
    shape, dtype, order = repr(array.shape), repr(np.lib.format.dtype_to_descr(array.dtype)), "False"
    kind = numbers.randrange(5)
    if kind == 0:
        shape = numbers.choice(_SHAPES)
    elif kind == 1:
        dtype = numbers.choice(_TYPES)
    elif kind == 2:
        order = numbers.choice(("True", "1", "None"))
    header = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    if kind == 3:
        header = numbers.choice((*_HEADERS, header + b"#" * 20000))
    version = numbers.choice(((1, 0), (2, 0), (3, 0), (9, 9))) if kind == 4 else (1, 0)
    length = numbers.choice((len(header) + 1, 0, 0xFFFF)) if kind == 4 and numbers.random() < 0.5 else len(header)
    prefix = b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", length)
    entries[place] = (name, prefix + header + array.tobytes())
    return archive_of([(f"{name}.npy", member) for name, member in entries], zipfile.ZIP_DEFLATED)


_DTYPES = (
    *("object", "U5", "S3", "M8[s]", "complex128", "longdouble", "float64", "float32", "float16", ">f8"),
    *("bool", "uint64", "int64", "int32", "int8", "uint8", ">i4"),
)
_VALUES = (
    *(float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 1e39, 1e30, 0.5),
    *(-1, -5, 0, 1, 2, 255, 256, 2**31, 2**53, 2**62, 2**63 - 1, -(2**63)),
)


def change_values(numbers: random.Random, arrays: Mapping[str, np.ndarray], counts: tuple[str, ...]) -> Arrays:
    """Arrays of which one has other values, another type or another shape.

    Args:
        numbers: Choose what.
        arrays: Sound arrays.
        counts: Names of those that count the rows of others.
    """
    changed = dict(arrays)
    name = numbers.choice([*arrays, *counts])
    array = changed[name] = np.array(arrays[name])
    kind = numbers.randrange(9)
    if kind <= 2:
        value = numbers.choice(_VALUES)
        is_whole = array.dtype.kind in "iu" and isinstance(value, int)
        array = changed[name] = array.astype(np.int64 if is_whole else np.float64)
        array[tuple(numbers.randrange(length) for length in array.shape)] = value
    elif kind == 3:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            changed[name] = array.astype(numbers.choice(_DTYPES))
    elif kind == 4:
        longer, others = np.concatenate([array, array[:1]]), (array[None], array[..., None], array.T, array.ravel())
        changed[name] = numbers.choice((array[:-1], array[1:], array[:0], longer, np.asfortranarray(array), *others))
    elif kind == 5:
        changed[name] = array[np.random.default_rng(numbers.randrange(2**32)).permutation(len(array))]
    elif kind == 6:
        other = numbers.choice(list(arrays))
        changed[name], changed[other] = changed[other], changed[name]
    elif kind == 7:
        del changed[name]
    else:
        changed[numbers.choice(counts)] = _wrapped(numbers, arrays[numbers.choice(counts)])
    return changed


def _wrapped(numbers: random.Random, counts: np.ndarray) -> np.ndarray:
    """Counts whose sum in 64 bits starts again from below and is what it was."""
    wrapped = counts.astype(np.uint64)
    places = numbers.sample(range(len(counts)), numbers.choice((2, 4)))
    for place in places:
        wrapped[place] += np.uint64(2**64 // len(places) % 2**64)
    return wrapped.astype(np.int64) if numbers.random() < 0.7 else wrapped


def any_value(numbers: random.Random) -> object:
    """A plain value that a reader may not expect."""
    whole, fractions = (-1, 0, 3, 10**5, 2**31, 2**63, 2**70), (-0.5, 1e308, float("nan"), float("inf"))
    return numbers.choice((None, True, *whole, *fractions, "", "text", "two\nlines", "x" * 10**5, b"bytes"))
