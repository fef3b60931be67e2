"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not POSIX: temporary files of killed processes stay
    fcntl = None  # type: ignore[assignment]

SAFETENSORS_SUFFIX = ".safetensors"

_TOKEN_BYTES = 8
_LONGEST_NAME = 200
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEW = (
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
)


def path_of(name: str, path: object) -> Path:
    """The path that an argument is.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"{name}: expected a path, got an object of type {type(path).__name__}")
    return Path(path)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` only when the block ends without an error.

    The bytes go to a file of a name that no other has, in the same folder, reach the disk, and are renamed over `path`: at every
    moment `path` is either the old file or the whole new one, also when several processes write it. It keeps owner and mode of
    the old file. Where `path` is a link, the file that it leads to is replaced and the link stays. What is no regular file, for
    instance /dev/null or a pipe, is written as it is. What killed processes left behind in the folder is removed.

    Raises:
        OSError: The file cannot be written; names `path`.
    """
    with _errors_name(path):
        target = _replaceable(path)
        if target is None:
            with open(path, "wb") as file:
                yield file
            return
        remove_stale_temporaries(target)
        with _temporary(target) as (file, temporary):
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
        _sync_folder(target.parent)


def check_writable(path: Path, num_bytes: int = 0) -> None:
    """Try whether `atomic_file` could write a file of so many bytes; `path` stays as it is. Its folder is made.

    Raises:
        OSError: It could not, for instance because the folder is read-only or the disk is full.
    """
    with _errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        target = _replaceable(path)
        if target is None:
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        with _temporary(target) as (file, _):
            _allocate(file.fileno(), num_bytes)


def check_apart(written: Sequence[tuple[str, Path | None]], read: Sequence[tuple[str, Path]]) -> None:
    """Check that no file that is to be written is one that is read, or one that something else is written to.

    Args:
        written: What is written, such as ``the log``, and where, if anywhere.
        read: What is read, and where it is.

    Raises:
        ValueError: One is; names both.
    """
    others = list(read)
    for name, path in written:
        if path is None or (path.exists() and not path.is_file()):  # to a pipe or /dev/null goes as much as one likes
            continue
        for other, taken in others:
            if path.resolve() == taken.resolve() or (path.exists() and taken.exists() and path.samefile(taken)):
                raise ValueError(f"{path}: expected another file for {name} than that of {other}")
        others.append((name, path))


def _allocate(descriptor: int, num_bytes: int) -> None:
    if num_bytes == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        if error.errno in _NO_SPACE:  # other errors: the file system knows no such thing
            raise


def remove_stale_temporaries(target: Path) -> None:
    """Remove the temporary files of a file that belong to no living process."""
    if fcntl is None:
        return
    pattern = re.compile(re.escape(_prefix(target)) + rf"[0-9a-f]{{{2 * _TOKEN_BYTES}}}\.tmp")
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    _remove_if_stale(entry.path)


def _remove_if_stale(name: str) -> None:
    """A process that writes holds the lock of its file, and lets go of it when it dies."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name)
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside `target`, locked while it is open, and removed at the end unless it was renamed."""
    descriptor, temporary = _open_temporary(target)
    try:
        with open(descriptor, "wb") as file:
            _take_over(target, descriptor)
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def _open_temporary(target: Path) -> tuple[int, Path]:
    while True:
        temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(_TOKEN_BYTES)}.tmp")
        try:
            descriptor = os.open(temporary, _NEW, 0o666)
        except FileExistsError:
            continue
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: no one finds it stale either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor, temporary
        os.close(descriptor)  # removed by a process that saw it before the lock


def _prefix(target: Path) -> str:
    """The start of the names of temporary files; shortened, since names may be no longer than 255 bytes."""
    return "." + os.fsdecode(os.fsencode(target.name)[:_LONGEST_NAME]) + "."


def _take_over(target: Path, descriptor: int) -> None:
    """Give a file owner and mode of the one that it will replace."""
    if os.name != "posix" or not target.exists():
        return
    old, new = target.stat(), os.fstat(descriptor)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with suppress(OSError):  # only the superuser may
            os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode) & 0o777)


def _replaceable(path: Path) -> Path | None:
    """The regular file that `path` is or leads to, there or not; None: it is no regular file, and must not be replaced.

    Raises:
        OSError: It is a folder, or a circle of links.
    """
    target = Path(os.path.realpath(path))
    try:
        found = path.stat()
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # Names such as /dev/stdout may lead to a file that has no name any more.
    is_there = stat.S_ISREG(found.st_mode) and target.exists() and target.samefile(path)
    return target if is_there else None


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Errors of the system that name no file, or the temporary one, name the file that was asked for."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not str(error.filename or ".tmp").endswith(".tmp"):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk too; only POSIX lets a folder be opened for that.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
