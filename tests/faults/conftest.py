"""What the table of faults needs: one stage for all faults of one server, and its books at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.outages import Fault, Ground
from tests.faults.stage import Stage

REPLY_SECONDS = 12.0
HEAL_SECONDS = 20.0
#: Connections a second that four clients who try again at once may cause.
HERD = 25.0


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """One relay for all faults of a module: it is never started again, and nothing may be missing at the end."""
    with Stage(tmp_path_factory.mktemp("stage")) as stage:
        ground = Ground(stage)
        pid = stage.relay.pid
        yield ground
        assert (stage.relay.pid, stage.relay.running) == (pid, True)
        stage.audit(ground.mails).check()
        stage.check_log()


@pytest.fixture
def befall(ground: Ground) -> Callable[[Fault], None]:
    """Lets a fault happen and compares what came of it with the table.

    The promised times (5 s for a reply, 5 s to heal) are measured by ./scripts/soak; here they have room for a machine
    that is busy.
    """

    def check(fault: Fault) -> None:
        seen = ground.observe(fault)
        assert seen.replies.keys() <= fault.mail, seen
        assert seen.auth_replies.keys() <= fault.auth, seen
        assert seen.slowest < REPLY_SECONDS, seen
        assert seen.slowest_auth < REPLY_SECONDS, seen
        assert seen.healed < HEAL_SECONDS, seen
        assert seen.connections_a_second < HERD, seen

    return check


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Sets a stage with the relay's settings given, for one test."""
    stages: list[Stage] = []

    def set_up(**settings: str) -> Stage:
        stages.append(Stage(tmp_path / f"stage-{len(stages)}", **settings).__enter__())
        return stages[-1]

    yield set_up
    for made in stages:
        made.__exit__(None, None, None)
