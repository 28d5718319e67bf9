"""The recipes of docs/clients.md: each sends, and gives its key to no other than the relay that it names.

Not collected by default, since it runs other people's programs; `./scripts/try_clients` runs it. What is not installed
is skipped.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.database import create_api_key, create_database, drop_database
from scripts.services import Postgres, Valkey
from tests.clients.door import Door, door
from tests.clients.mail import Answer
from tests.clients.recipes import RECIPES, Place, Recipe, sections
from tests.support.certificates import write_pair

SECTIONS = sections()


@pytest.fixture(scope="module")
def named_otherwise(
    postgres_server: Postgres, schema_template: str, valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    """A relay whose certificate, which clients trust, has the name of another machine."""
    name = f"clients_{uuid.uuid4().hex}"
    database_url = create_database(postgres_server.url(), name, schema_template)
    directory = tmp_path_factory.mktemp("door")
    write_pair(directory / "tls", name="other.example")
    place = door(directory, database_url, valkey_server.url, create_api_key(database_url), secured=True)
    with place.relay:
        yield place
    drop_database(postgres_server.url(), name)


@pytest.fixture(
    params=[pytest.param(recipe, id=f"{recipe.name}-recipe") for recipe in RECIPES],
)
def recipe(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Recipe:
    chosen: Recipe = request.param
    lacking = chosen.missing()
    if lacking:
        pytest.skip(lacking)
    record_property("version", chosen.version())
    return chosen


Send = Callable[..., Answer]


@pytest.fixture
def send(recipe: Recipe, record_property: Callable[[str, object], None]) -> Iterator[Send]:
    """Sends by the recipe, and says what the client said. What it said is shown with `--verbose`."""
    # Not in pytest's own folder, which only its owner may enter: mail servers have users of their own.
    directory = Path(tempfile.mkdtemp(prefix="recipe-"))
    directory.chmod(0o755)

    def run(place: Place, mark: str) -> Answer:
        answer = recipe.send(SECTIONS[recipe.name], place, mark, directory)
        record_property("said", answer.said)
        return answer

    yield run
    shutil.rmtree(directory, ignore_errors=True)


def place_at(door: Door, *, key: str = "", trusted: bool = True, directory: Path) -> Place:
    """A place whose authorities the users of mail servers can read."""
    authority = directory / "authority.pem"
    shutil.copyfile(door.authority, authority)
    account = door.account("starttls", password=key)
    return Place(account.reading(str(authority)), door.tls_port or door.relay.port, trusted)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="authority-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_sends(doors: dict[bool, Door], send: Send, open_folder: Path) -> None:
    mark = uuid.uuid4().hex
    answer = send(place_at(doors[True], directory=open_folder), mark)
    assert answer.accepted, answer.said
    (row,) = doors[True].rows(mark)
    assert row["to"] == ["to@x.example"]


def test_wrong_key(doors: dict[bool, Door], send: Send, open_folder: Path, recipe: Recipe) -> None:
    """The client shows what the page says that it shows."""
    mark = uuid.uuid4().hex
    place = place_at(doors[True], key="os_live_nobody", directory=open_folder)
    answer = send(place, mark)
    assert not answer.accepted
    assert doors[True].rows(mark) == []
    shown = place.filled(SECTIONS[recipe.name].shown)
    for line in shown.splitlines():
        assert " ".join(line.split()) in " ".join(answer.said.split())


def refused(answer: Answer) -> bool:
    """Whether the mail was not sent, and the client says that TLS or the certificate was the cause."""
    return not answer.accepted and re.search(r"TLS|SSL|certificate", answer.said, re.IGNORECASE) is not None


def test_unknown_authority(doors: dict[bool, Door], send: Send, open_folder: Path) -> None:
    mark = uuid.uuid4().hex
    answer = send(place_at(doors[True], trusted=False, directory=open_folder), mark)
    assert refused(answer), answer.said
    assert doors[True].rows(mark) == []


def test_other_name(named_otherwise: Door, send: Send, open_folder: Path) -> None:
    mark = uuid.uuid4().hex
    answer = send(place_at(named_otherwise, directory=open_folder), mark)
    assert refused(answer), answer.said
    assert named_otherwise.rows(mark) == []


def test_no_tls(doors: dict[bool, Door], send: Send, open_folder: Path, recipe: Recipe) -> None:
    """STARTTLS is not offered, as where an attacker removes it from the reply to EHLO."""
    if recipe.clear_to_localhost:
        pytest.skip(f"{recipe.name} sends a key in the clear to the name localhost, and to no other")
    mark = uuid.uuid4().hex
    answer = send(place_at(doors[False], directory=open_folder), mark)
    assert refused(answer), answer.said
    assert doors[False].rows(mark) == []
