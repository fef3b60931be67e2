"""Files that several processes write, links, pipes and devices; what is left behind; what cannot be written."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from se3_fast.files import atomic_file, check_writable


def write(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as first:
        first.write(b"first, ")
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"whole")
    assert path.read_bytes() == b"first, whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    link.symlink_to(Path("elsewhere") / "target")
    for content in (b"made through the link", b"replaced"):
        write(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    assert {entry.name for entry in tmp_path.rglob("*")} == {"elsewhere", "target", "link"}


@pytest.mark.parametrize("name", ["file.tmp", ".file.0123456789abcdef.tmp"])
def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Not where somebody guesses the temporary name either."""
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"precious")
    (tmp_path / name).symlink_to(victim)
    tokens = iter(["0123456789abcdef", "f" * 16])
    monkeypatch.setattr("se3_fast.files.secrets.token_hex", lambda _: next(tokens))
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert victim.read_bytes() == b"precious" and (tmp_path / name).is_symlink()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """A `.tmp` of another program, and the temporary file of a living process."""
    path = tmp_path / "file"
    (tmp_path / "file.tmp").write_bytes(b"another program's")
    with atomic_file(path) as file:
        file.write(b"slow")
        write(path, b"quick")
        assert len(list(tmp_path.glob(".file.*.tmp"))) == 1
    assert path.read_bytes() == b"slow"
    assert (tmp_path / "file.tmp").read_bytes() == b"another program's"


def test_what_is_no_regular_file_is_written_and_not_replaced(tmp_path: Path) -> None:
    write(Path(os.devnull), b"nothing")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    check_writable(pipe)
    write(pipe, b"through the pipe")
    reader.join()
    assert received == [b"through the pipe"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_that_has_no_name_any_more(tmp_path: Path) -> None:
    """What /dev/stdout leads to where the output goes to a file that was removed."""
    with open(tmp_path / "removed", "w+b") as file:
        (tmp_path / "removed").unlink()
        write(Path(f"/proc/self/fd/{file.fileno()}"), b"still there")
        assert os.pread(file.fileno(), 100, 0) == b"still there"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "old", "expected"), [(0o022, None, 0o644), (0o077, None, 0o600), (0o077, 0o664, 0o664)])
def test_modes_follow_the_umask_or_the_old_file(tmp_path: Path, umask: int, old: int | None, expected: int) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.touch()
        path.chmod(old)
    before = os.umask(umask)
    try:
        write(path, b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == expected


def test_long_names_have_temporary_files_too(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)  # 254 bytes
    write(path, b"new")
    assert path.read_bytes() == b"new"


def test_trying_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    check_writable(path, 1000)
    assert list(path.parent.iterdir()) == []
    write(path, b"old")
    check_writable(path, 1000)
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def refuse(number: int) -> object:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_what_cannot_be_written_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with pytest.raises(IsADirectoryError) as caught:
        check_writable(tmp_path)
    assert caught.value.filename == str(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(FileExistsError):
        check_writable(path / "file")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OSError, match="symbolic links"):
        check_writable(tmp_path / "circle")
    for name, number in (("posix_fallocate", errno.ENOSPC), ("open", errno.EACCES)):
        with monkeypatch.context() as patch, pytest.raises(OSError, match=os.strerror(number)) as caught:
            patch.setattr(os, name, refuse(number))
            check_writable(path, 1000)
        assert caught.value.filename == str(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse(errno.EOPNOTSUPP))
        check_writable(path, 1000)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "circle", path]


def test_a_disk_that_is_really_full() -> None:
    """Linux has a device for it; it is no regular file, and fails when it is written."""
    with pytest.raises(OSError, match="No space") as caught:
        write(Path("/dev/full"), b"new")
    assert caught.value.filename == "/dev/full"
