"""Downloads that survive a cut connection and never leave half a file under the final name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import requests
from filelock import FileLock
from tqdm import tqdm

QM9_EDGE_URL = "https://data.dgl.ai/dataset/qm9_edge.npz"
"""The preprocessed QM9 of the published model."""

GDB9_URL = "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/gdb9.tar.gz"
"""The molecules (``gdb9.sdf``) and the properties (``gdb9.sdf.csv``) of QM9, as MoleculeNet keeps them."""

CHUNK_BYTES = 1 << 14
"""Small, because what has come of an unfinished chunk is lost when the connection is cut."""

TIMEOUT_SECONDS = 30
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(OSError):
    """A file could not be downloaded; the message says where to put it by hand."""


class _Interrupted(Exception):
    """An attempt ended early and the next one may get further."""


def download_file(
    url: str,
    path: str | os.PathLike[str],
    check: Callable[[Path], None],
    attempts: int = 5,
    pause: float = 1.0,
) -> None:
    """Download a file unless it is there already.

    Bytes collect in ``<name>.part`` beside it; what an earlier attempt or an earlier run left there is continued by an
    HTTP range request. The file takes its name when it has its full size and ``check`` is content. Processes that ask
    for the same file wait for one another.

    Args:
        url: Where the file is.
        path: Where it goes.
        check: Called with the path of the whole ``.part`` file; raises ValueError if that is not what was expected.
        attempts: Give up after this many attempts in a row that bring no byte.
        pause: Seconds to wait after the first of them; doubled after each further one.

    Raises:
        DownloadError: The file cannot be had.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with FileLock(target.with_name(target.name + ".lock")):
        if target.exists():
            return
        _complete(url, part, target, attempts, pause)
        try:
            check(part)
        except ValueError as error:
            part.unlink()
            raise DownloadError(f"{url} is not the file that was expected: {error}") from error
        os.replace(part, target)


def _complete(url: str, part: Path, target: Path, attempts: int, pause: float) -> None:
    fruitless = 0
    while True:
        before = _size(part)
        try:
            _attempt(url, part)
            return
        except (requests.RequestException, _Interrupted) as error:
            fruitless = 0 if _size(part) > before else fruitless + 1
            if fruitless == attempts or isinstance(error, requests.HTTPError):
                reason = str(error) if isinstance(error, _Interrupted | requests.HTTPError) else type(error).__name__
                advice = f"fetch it by hand and put it at {target}"
                raise DownloadError(f"cannot download {url} ({reason}); {advice}") from error
        time.sleep(pause * 2 ** max(fruitless - 1, 0))


def _attempt(url: str, part: Path) -> None:
    """Append what is missing; returns when the part is whole."""
    have = _size(part)
    # 'identity': the numbers of a range count the bytes of the file, not those of a compressed transfer.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == 416:
            if _total_of_range(response) != have:
                part.unlink()
                raise _Interrupted("the part kept from an earlier attempt does not belong to the file")
            return
        if response.status_code in RETRIED_STATUS:
            raise _Interrupted(f"HTTP {response.status_code}")
        if response.status_code not in (200, 206):
            raise requests.HTTPError(f"HTTP {response.status_code}")
        resumed = response.status_code == 206
        if resumed and _start_of_range(response) != have:
            raise _Interrupted(f"asked for the bytes from {have} on, got {response.headers.get('Content-Range')}")
        total = _total_of_range(response) if resumed else _number(response.headers.get("Content-Length"))
        _store(response, part, have if resumed else 0, total)
    if total is not None and _size(part) < total:
        raise _Interrupted(f"connection closed after {_size(part)} of {total} bytes")


def _store(response: requests.Response, part: Path, have: int, total: int | None) -> None:
    with (
        open(part, "ab" if have else "wb") as stream,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem) as progress,
    ):
        for chunk in response.iter_content(CHUNK_BYTES):
            stream.write(chunk)
            progress.update(len(chunk))
        stream.flush()
        os.fsync(stream.fileno())


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _start_of_range(response: requests.Response) -> int | None:
    # Content-Range: bytes 100-199/200
    return _number(response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0])


def _total_of_range(response: requests.Response) -> int | None:
    return _number(response.headers.get("Content-Range", "").rpartition("/")[2])


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 19 else None
