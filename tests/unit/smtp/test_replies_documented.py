"""docs/replies.md says of each reply what it means and what to do, and of nothing else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from relay.process.absence import REPLY
from relay.smtp import replies
from relay.smtp.replies import Reply

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "replies.md"
#: What each function that makes a reply is given, so that its text is the document's.
GIVEN: dict[str, tuple[object, ...]] = {
    "queued": ("<id>",),
    "already_queued": ("<id>",),
    "left_out": (Reply(250, "", ("",)), 2),
    "wrong_domain": ("<domain>",),
    "suppressed": ([("<address>", "<reason>")],),
    "too_many_recipients": ("<n>", "<n>"),
    "bad_tag": ("<detail>",),
    "refused_extension": ("<extension>",),
    "bad_idempotency_key": ("<detail>",),
}
#: What is no answer to anything that a user did.
UNSHOWN = {"greeting", "ehlo", "helo", "challenge"}


def _functions() -> dict[str, Callable[..., Reply]]:
    return {
        name: function
        for name, function in inspect.getmembers(replies, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == replies.__name__ and name not in UNSHOWN
    }


def _texts() -> Iterator[str]:
    """Each reply as a client shows it."""
    made: list[Any] = [value for _, value in inspect.getmembers(replies) if isinstance(value, Reply)]
    made += [function(*GIVEN[name]) for name, function in _functions().items() if name != "left_out"]
    for reply in made:
        yield " ".join(filter(None, (str(reply.code), reply.enhanced, *reply.lines)))
    yield REPLY.decode().strip()
    yield _left_out()


def _left_out() -> str:
    return replies.left_out(Reply(250, "", ("",)), 2).lines[0].replace("(2 ", "(<n> ")


def _documented() -> set[str]:
    rows = [line for line in DOCUMENT.read_text().splitlines() if re.match(r"\| (?:`[2-5]\d\d |… )", line)]
    return {text for row in rows for text in re.findall("`([^`]*)`", row.split(" | ")[0])}


def test_each_function_that_makes_a_reply_is_known_here() -> None:
    assert _functions().keys() == GIVEN.keys()


def test_each_reply_is_documented_and_no_other() -> None:
    assert _documented() == set(_texts())
