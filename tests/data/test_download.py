"""Downloads from a server on this machine that cuts connections."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from se3_fast.data.download import CHUNK_BYTES, DownloadError, download_file

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` and remembers the ranges that were asked for.

    Attributes:
        cut_after: The connection is closed after this many bytes of a body.
        ranges: Whether range requests are honoured.
        longest_range: The most bytes that a range request gets.
        announces_length: Whether there is a Content-Length.
        statuses: Answered first, one after the other, instead of the content.
        asked: The Range header of every request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cut_after = len(CONTENT)
        self.ranges = True
        self.longest_range = len(CONTENT)
        self.announces_length = True
        self.statuses: list[int] = []
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers["Range"])
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        total = len(server.content)
        start, end = 0, total
        if self.headers["Range"] and server.ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.end_headers()
                return
            end = min(total, start + server.longest_range)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        else:
            self.send_response(200)
        if server.announces_length:
            self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.write(server.content[start:end][: server.cut_after])

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def has_the_content(path: Path) -> None:
    if path.read_bytes() != CONTENT:
        raise ValueError("other bytes")


def fetch(server: Server, path: Path, attempts: int = 3) -> None:
    download_file(server.url, path, has_the_content, attempts=attempts, pause=0.0)


def test_whole_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None]
    assert not path.with_name("file.bin.part").exists()


def test_a_file_that_is_there_is_not_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"mine")
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == b"mine"
    assert server.asked == []


def test_cut_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.cut_after = 70_000
    fetch(server, tmp_path / "file.bin", attempts=2)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 5
    assert server.asked[0] is None
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in server.asked[1:] if asked]
    # Of every 70,000 bytes sent, at most the last chunk is lost.
    assert all(start > previous + 70_000 - CHUNK_BYTES for previous, start in pairwise([0, *starts]))


def test_shorter_ranges_than_asked_for_are_put_together(server: Server, tmp_path: Path) -> None:
    server.longest_range = 90_000
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1_000])
    fetch(server, tmp_path / "file.bin")
    assert server.asked == [f"bytes={n}-" for n in (1_000, 91_000, 181_000, 271_000)]


def test_a_later_run_continues(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:123_456])
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == ["bytes=123456-"]


def test_a_whole_part_is_only_renamed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.bin.part").write_bytes(b"x" * 5_000)
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_attempts_without_progress_end(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut_after = 20_000
    with pytest.raises(DownloadError, match="fetch it by hand and put it at") as caught:
        fetch(server, tmp_path / "file.bin", attempts=3)
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 4  # the first brought bytes, three more brought none
    assert not (tmp_path / "file.bin").exists()


def test_missing_page_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(DownloadError, match=r"\(HTTP 404\); fetch it by hand and put it at .*file\.bin"):
        fetch(server, tmp_path / "file.bin")
    assert len(server.asked) == 1


def test_another_file_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match="not the file that was expected: other bytes"):
        fetch(server, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()
    assert not (tmp_path / "file.bin.part").exists()


def test_truncation_without_announced_length_is_caught_by_the_check(server: Server, tmp_path: Path) -> None:
    server.announces_length = False
    server.cut_after = 1_000
    with pytest.raises(DownloadError, match="not the file that was expected"):
        fetch(server, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()


def test_offline(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"\(ConnectionError\); fetch it by hand and put it at .*file\.bin"):
        download_file("http://127.0.0.1:9/file.bin", tmp_path / "file.bin", has_the_content, attempts=2, pause=0.0)
