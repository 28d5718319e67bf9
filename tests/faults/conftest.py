"""What the table of faults needs: one stage for all faults of one server, and its books at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.outages import Fault, Ground
from tests.faults.stage import Servers, Stage

REPLY_SECONDS = 12.0
HEAL_SECONDS = 20.0
#: Connections a second that the relay may try to make, whose writers make two for each batch of messages at most.
HERD = 80.0


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


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers that no test breaks."""
    with Servers(tmp_path_factory.mktemp("servers")) as servers:
        yield servers


@pytest.fixture
def stage(tmp_path: Path, servers: Servers) -> Iterator[Callable[..., Stage]]:
    """Sets a stage with the relay's settings given, for one test; its servers are not the test's to break."""
    stages: list[Stage] = []

    def set_up(**settings: str) -> Stage:
        stages.append(Stage(tmp_path / f"stage-{len(stages)}", servers, **settings).__enter__())
        return stages[-1]

    yield set_up
    for made in stages:
        made.__exit__(None, None, None)
