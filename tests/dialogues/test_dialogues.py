"""Plays every dialogue script with a real server over TCP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.dialogues.script import Mismatch, Player, Scene, check_messages, parse, parse_text
from tests.support.dialogue_stage import Stage

HERE = Path(__file__).parent
SIZES = {"max_message_size_bytes": 100_000, "spool_threshold_bytes": 30_000, "max_recipients": 5}
HURRY = {
    "command": 2.0,
    "handshake": 2.0,
    "connection": 60.0,
    "data_pause": 2.0,
    "data_grace": 2.0,
    "data_rate": 100_000.0,
}
SERVERS = {
    "open": {"settings": SIZES},
    "certified": {"settings": SIZES, "tls": True},
    "hurried": {"settings": SIZES, "pace": HURRY},
    "certified-hurried": {"settings": SIZES, "pace": HURRY, "tls": True},
    "full": {"settings": {**SIZES, "spool_dir": "/nowhere"}},
    "scarce": {"settings": {**SIZES, "key_messages_per_minute": 1}},
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("dialogues"), SERVERS) as made:
        yield made


def plays(paths: Iterable[Path]) -> list[tuple[str, Scene, str]]:
    """Every scene on each of its servers, with a name."""
    return [
        (f"{path.stem}: {scene.title} ({transport})", scene, transport)
        for path in sorted(paths)
        for scene in parse(path)
        for transport in scene.transports
    ]


SWIFT = [pytest.param(scene, transport, id=name) for name, scene, transport in plays(HERE.glob("*.txt"))]


@pytest.mark.parametrize(("scene", "transport"), SWIFT)
def test_dialogue(stage: Stage, scene: Scene, transport: str) -> None:
    stage.newly_accepted()
    player = Player(stage, scene, transport)
    player.play()
    check_messages(stage, player.expected_messages())


def test_dialogues_that_take_their_time(stage: Stage) -> None:
    """Those of the folder `slow`, side by side."""
    stage.newly_accepted()
    players = [Player(stage, scene, transport) for _, scene, transport in plays((HERE / "slow").glob("*.txt"))]
    with ThreadPoolExecutor(len(players)) as pool:
        for play in [pool.submit(player.play) for player in players]:
            play.result()
    check_messages(stage, [message for player in players for message in player.expected_messages()])


@pytest.mark.parametrize(
    "steps",
    [
        "S: 220 other.test …",
        "S: 22",
        "S: <closed>",
        "S: 220 …\nC: NOOP\nS: 250 2.0.0",
        "S: 220 …\nC: NOOP\nC: NOOP\nS: 250 2.0.0 Ok",
        "S: 220 …\nC: NOOP\nS: 250 2.0.0 Ok\nS: <closed>",
        "S: 220 …\nC: QUIT\nS: 221 2.0.0 Bye\nS: 250 …",
    ],
)
def test_player_notices(stage: Stage, steps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.dialogue_stage.PATIENCE_SECONDS", 0.5)
    with pytest.raises(Mismatch):
        Player(stage, parse_text(f"== Wrong\n{steps}\n")[0], "open").play()


@pytest.mark.parametrize(
    "expected",
    [
        [],
        ["rcpt@example.net | x\\r\\n"] * 2,
        ["rcpt@example.net | x"],
        ["other@example.net | x\\r\\n"],
        ["rcpt@example.net, other@example.net | …"],
    ],
)
def test_player_notices_messages(stage: Stage, expected: list[str]) -> None:
    stage.newly_accepted()
    Player(stage, parse_text("start: sending\n== One message\nC: x\nC: .\nS: 250 …\n")[0], "open").play()
    with pytest.raises(Mismatch):
        check_messages(stage, expected)


@pytest.mark.parametrize(
    "text", ["C: EHLO", "== a\nX: y", "== a\nserver: nowhere", "== a\nstart: nowhere", "== a\nC EHLO"]
)
def test_scripts_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match=r"script:\d"):
        parse_text(text)
