"""Room on a disk that has little: whatever comes in whatever order, what can go goes, and nothing stays taken."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.smtp import spool_room
from relay.smtp.spool import Body, NoRoom
from relay.smtp.spool_room import Share, SpoolRoom

MB = 1_000_000


class Disk:
    """So many octets, which shares take and give back."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0


class DiskShare(Share):
    """A share of a disk that is none: a real one of a known size takes the right to mount."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(-1)
        self._disk = disk

    def grow(self, octets: int) -> None:
        """See Share."""
        if self._disk.taken + octets - self.octets > self._disk.size:
            raise OSError(errno.ENOSPC, "full")
        self._disk.taken += octets - self.octets
        self.octets = octets

    def shrink(self, octets: int) -> None:
        """See Share."""
        self._disk.taken -= self.octets - octets
        self.octets = octets

    def exceeds_disk(self, octets: int) -> bool:
        """See Share."""
        return octets > self._disk.size


class Arrival:
    """A message that arrives in pieces, each a step of its greenlet."""

    def __init__(self, room: SpoolRoom, disk: Disk, size: int, announced: int, step: int) -> None:
        self.size, self.announced, self.step = size, announced, step
        self.arrived: bool | None = None
        self.greenlet = gevent.spawn(self._run, room, disk)

    def _run(self, room: SpoolRoom, disk: Disk) -> None:
        share = DiskShare(disk)
        try:
            for position in range(self.step, self.size + self.step, self.step):
                room.take(share, min(position, self.size), self.announced)
                gevent.sleep(0)
            room.whole(share, self.size)
            self.arrived = True
            gevent.sleep(0.001)
        except NoRoom:
            self.arrived = False
        finally:
            room.give_back(share)
            share.shrink(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_room, "_POLL_SECONDS", 0.0001)


arrivals = st.lists(
    st.tuples(st.integers(1, 100), st.sampled_from(["exact", "none", "little", "much"]), st.integers(1, 100)),
    min_size=1,
    max_size=10,
)


def _arrive(room: SpoolRoom, disk: Disk, wanted: list[tuple[int, str, int]]) -> list[Arrival]:
    unit = 50_000
    made = []
    for size, how, step in wanted:
        announced = {"exact": size, "none": 0, "little": size // 2, "much": min(2 * size, 100)}[how] * unit
        made.append(Arrival(room, disk, size * unit, announced, step * unit))
    gevent.joinall([each.greenlet for each in made], raise_error=True)
    return made


@given(arrivals)
@settings(max_examples=60)
def test_what_is_announced_goes_and_one_at_least_of_all_others(wanted: list[tuple[int, str, int]]) -> None:
    disk, room = Disk(100 * 50_000), SpoolRoom()
    made = _arrive(room, disk, wanted)
    assert disk.taken == 0
    assert not room._queue
    assert not room._arriving
    assert any(each.arrived for each in made)
    if all(each.announced >= each.size for each in made):
        assert all(each.arrived for each in made)


def test_eight_where_two_have_room_all_go() -> None:
    disk, room = Disk(6 * MB), SpoolRoom()
    made = [Arrival(room, disk, 2_500_000, 2_500_000, 65_536) for _ in range(8)]
    gevent.joinall([each.greenlet for each in made], raise_error=True)
    assert [each.arrived for each in made] == [True] * 8


def test_eight_that_announce_nothing_the_first_of_them_goes() -> None:
    disk, room = Disk(6 * MB), SpoolRoom()
    made = [Arrival(room, disk, 2_500_000, 0, 65_536) for _ in range(8)]
    gevent.joinall([each.greenlet for each in made], raise_error=True)
    assert made[0].arrived
    assert disk.taken == 0


def test_a_message_larger_than_the_disk_does_not_wait() -> None:
    room = SpoolRoom()
    room.patience = 3600
    arrival = Arrival(room, Disk(6 * MB), 7 * MB, 7 * MB, 65_536)
    arrival.greenlet.join()
    assert arrival.arrived is False


def test_who_waits_too_long_is_refused_and_leaves_the_queue() -> None:
    disk, room = Disk(MB), SpoolRoom()
    disk.taken = MB  # another process's
    room.patience = 0.01
    made = [Arrival(room, disk, 500_000, 500_000, 65_536) for _ in range(3)]
    gevent.joinall([each.greenlet for each in made])
    assert [each.arrived for each in made] == [False] * 3
    assert not room._queue
    disk.taken = 0
    late = Arrival(room, disk, 500_000, 500_000, 65_536)
    late.greenlet.join()
    assert late.arrived


def test_one_that_is_killed_while_it_waits_leaves_the_queue() -> None:
    disk, room = Disk(MB), SpoolRoom()
    disk.taken = MB
    waiting, behind = (Arrival(room, disk, 500_000, 500_000, 65_536) for _ in range(2))
    gevent.sleep(0.001)
    waiting.greenlet.kill()
    disk.taken = 0
    behind.greenlet.join()
    assert behind.arrived
    assert not room._queue


def test_a_refused_message_leaves_no_octet_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the rest of it is read, others use the room."""
    monkeypatch.setattr(Body, "room", SpoolRoom())
    body = Body(10, str(tmp_path))
    body.write(b"x" * 100)
    descriptor = body.fileno()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(SpoolRoom, "patience", 0.01)
    with pytest.raises(NoRoom):
        body.write(b"x" * 10 * MB)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_what_was_announced_and_did_not_come_is_no_part_of_the_message(tmp_path: Path) -> None:
    body = Body(10, str(tmp_path), 5 * MB)
    body.write(b"x" * 11)
    assert os.fstat(body._file.fileno()).st_size == 5 * MB  # type: ignore[union-attr]
    assert body.read() == b"x" * 11
    assert os.fstat(body.fileno()).st_size == 11
    body.write(b"y" * 3)
    assert Body.from_file(os.dup(body.fileno())).read() == b"x" * 11 + b"yyy"
    body.close()


def test_a_body_in_memory_is_put_into_a_file(tmp_path: Path) -> None:
    body = Body(100, str(tmp_path))
    for piece in (b"first, ", b"second"):
        body.write(piece)
    in_memory = Body.in_memory
    body.spool()
    assert Body.in_memory == in_memory - 13
    assert body.spooled
    assert Body.from_file(os.dup(body.fileno())).read() == body.read() == b"first, second"
    body.spool()
    body.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 6 MB."""
    folder = tmp_path / "spool"
    folder.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=6000000 none {folder} 2>/dev/null") != 0:
        pytest.skip("needs the right to mount")
    yield folder
    os.system(f"umount {folder}")


@pytest.mark.parametrize("announced", [2_500_000, 0])
def test_a_real_disk(small_disk: Path, announced: int) -> None:
    def arrive() -> bool:
        body = Body(1000, str(small_disk), announced)
        try:
            for _ in range(25):
                body.write(b"x" * 100_000)
                gevent.sleep(0)
            body.fileno()
            return body.read() == b"x" * 2_500_000
        except NoRoom:
            return False
        finally:
            body.close()

    greenlets = [gevent.spawn(arrive) for _ in range(8)]
    gevent.joinall(greenlets, raise_error=True)
    arrived = [each.value for each in greenlets]
    assert arrived == [True] * 8 if announced else arrived[0]
    assert shutil.disk_usage(small_disk).used == 0


def test_taking_room_costs_next_to_nothing(tmp_path: Path) -> None:
    began = time.process_time()
    for _ in range(5):
        body = Body(10, str(tmp_path), 40 * MB)
        body.write(b"x" * 11)
        body.close()
    assert (time.process_time() - began) / 5 < 0.05


def test_a_large_request_is_not_overtaken_by_small_ones() -> None:
    """Small messages that keep coming would otherwise keep a large one waiting for ever."""
    disk, room = Disk(6 * MB), SpoolRoom()
    disk.taken = 4 * MB
    large = Arrival(room, disk, 5 * MB, 5 * MB, 65_536)
    gevent.sleep(0.001)
    small = Arrival(room, disk, MB, MB, 65_536)
    gevent.sleep(0.01)
    assert (large.arrived, small.arrived, disk.taken) == (None, None, 4 * MB)
    disk.taken = 0
    gevent.joinall([large.greenlet, small.greenlet])
    assert (large.arrived, small.arrived) == (True, True)
