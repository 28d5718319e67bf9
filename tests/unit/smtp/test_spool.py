"""Message data: in memory, in a file, and where there is no room."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.smtp.spool import Body, NoRoom


@given(st.lists(st.binary(max_size=50), max_size=10), st.integers(0, 120))
def test_what_was_written_is_read(pieces: list[bytes], threshold: int) -> None:
    whole = b"".join(pieces)
    body = Body(threshold)
    for piece in pieces:
        body.write(piece)
    assert body.size == len(whole)
    assert body.spooled is (len(whole) > threshold)
    assert body.read() == whole
    assert body.read() == whole
    body.close()
    assert body.read() == b""
    assert body.size == len(whole)


def test_file_has_no_name_and_ends_with_the_body(tmp_path: Path) -> None:
    body = Body(10, str(tmp_path))
    body.write(b"x" * 11)
    assert list(tmp_path.iterdir()) == []
    fd = body.fileno()
    os.fstat(fd)
    body.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    body.close()


def test_in_memory_there_is_no_descriptor() -> None:
    with pytest.raises(ValueError, match="not spooled"):
        Body(10).fileno()


def test_another_process_reads_the_file(tmp_path: Path) -> None:
    body = Body(10, str(tmp_path))
    body.write(b"first, ")
    body.write(b"and second")
    code = "import sys; from relay.smtp.spool import Body; b = Body.from_file(int(sys.argv[1]));"
    code += "print(b.spooled, b.size, b.read(), b.read())"
    arguments = [sys.executable, "-c", code, str(body.fileno())]
    printed = subprocess.run(arguments, pass_fds=[body.fileno()], capture_output=True, check=True, text=True).stdout
    assert printed == "True 17 b'first, and second' b'first, and second'\n"
    assert body.read() == b"first, and second"


def test_all_messages_together_have_so_much_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Body, "most_in_memory", 25)
    monkeypatch.setattr(Body, "in_memory", 0)
    first, second, third = (Body(100, str(tmp_path)) for _ in range(3))
    first.write(b"x" * 15)
    second.write(b"y" * 10)
    assert Body.in_memory == 25
    third.write(b"z")
    first.write(b"x")
    assert [body.spooled for body in (first, second, third)] == [True, False, True]
    assert Body.in_memory == 10
    third.write(b"z" * 14)
    first.write(b"x")
    assert [body.read() for body in (first, second, third)] == [b"x" * 17, b"y" * 10, b"z" * 15]
    for body in (first, second, third):
        body.close()
        body.close()
    assert Body.in_memory == 0


def test_what_is_refused_for_room_is_not_counted(tmp_path: Path) -> None:
    before = Body.in_memory
    body = Body(10, str(tmp_path / "missing"))
    body.write(b"x" * 10)
    with pytest.raises(NoRoom):
        body.write(b"x")
    body.close()
    assert Body.in_memory == before


def test_no_directory_for_the_file(tmp_path: Path) -> None:
    body = Body(10, str(tmp_path / "missing"))
    body.write(b"x" * 10)
    with pytest.raises(NoRoom):
        body.write(b"x")
    body.close()


@pytest.mark.parametrize("before", [0, 5, 15])
def test_disk_full(tmp_path: Path, before: int) -> None:
    """A limit on the size of files gives the same error as a full disk, at the write."""
    code = f"""
import resource
from relay.smtp.spool import Body, NoRoom
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
body = Body(10, {str(tmp_path)!r})
body.write(b"x" * {before})
try:
    body.write(b"x" * 100)
except NoRoom as error:
    print(type(error.__cause__).__name__, error.__cause__.errno)
body.close()
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert printed.splitlines()[-1] == "OSError 27"


def test_an_octet_at_a_time_costs_no_more_than_all_at_once() -> None:
    tracemalloc.start()
    try:
        body = Body(200_000)
        for _ in range(200_000):
            body.write(b"x")
        assert tracemalloc.get_traced_memory()[0] < 500_000
        assert len(body.read()) == 200_000
        body.close()
    finally:
        tracemalloc.stop()
