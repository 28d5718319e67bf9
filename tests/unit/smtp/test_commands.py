"""The table of commands says what holds for each; replies count by what they say, never by which object they are."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from relay.smtp import command, replies
from relay.smtp.command import COMMAND_LINE_LIMIT, LINE_LIMIT
from relay.smtp.error_counts import ErrorCounts
from relay.smtp.options import Options
from relay.smtp.replies import Reply
from relay.smtp.session import Expects, Session
from tests.support.encounter import Services
from tests.support.unlimited import Unlimited

RELAY = Path(command.__file__).parents[1]
OPTIONS = Options("relay.test", max_message_size=2000, max_recipients=3, max_errors=10, max_before_auth=10_000)
REFUSALS = [reply for reply in vars(replies).values() if isinstance(reply, Reply) and reply.code >= 500]
VERBS = sorted(Session._COMMANDS)


def session() -> Session:
    return Session(OPTIONS, Services(), Unlimited(), "test")


@pytest.mark.parametrize("verb", VERBS)
def test_the_longest_line_of_each_command(verb: bytes) -> None:
    limit = LINE_LIMIT if verb == b"AUTH" else COMMAND_LINE_LIMIT
    for length, too_long in ((limit, False), (limit + 1, True)):
        reply = session().line(verb + b" " + b"x" * (length - len(verb) - 1))
        assert reply is not None
        if verb == b"BDAT":
            # Octets may follow: there is no way back to commands.
            assert reply.closes
        else:
            assert (reply == replies.LINE_TOO_LONG) is too_long
            assert not reply.closes or verb == b"QUIT"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("octet", [b"\0", b"\x1b", b"\x7f", b"\r"])
def test_no_command_takes_control_characters(verb: bytes, octet: bytes) -> None:
    made = session()
    reply = made.line(verb + b" x" + octet)
    assert reply == (replies.BDAT_SYNTAX if verb == b"BDAT" else replies.BAD_CHARACTER)
    assert made.expects is Expects.COMMAND


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_is_known_in_any_case(verb: bytes) -> None:
    for spelling in (verb, verb.lower(), verb.title(), verb + b"\t"):
        assert session().line(spelling) == session().line(verb)


@pytest.mark.parametrize("reply", REFUSALS)
def test_a_reply_counts_for_what_it_says(reply: Reply) -> None:
    """A copy, and the same that closes, are counted as the constant is."""
    for kind in (ErrorCounts.command, ErrorCounts.sequel, ErrorCounts.recipient):
        counted = []
        for spelling in (reply, replace(reply), replace(reply, closes=not reply.closes)):
            counts = ErrorCounts(OPTIONS)
            counts.mail_refused()
            said = [kind(counts, spelling) for _ in range(150)]
            counted.append([answer == spelling for answer in said])
        assert counted[0] == counted[1] == counted[2]


@pytest.mark.parametrize("verb", [b"RCPT TO:<c@d.example>", b"DATA", b"BDAT 0"])
def test_what_was_sent_along_with_a_refused_mail_is_no_error(verb: bytes) -> None:
    """So many commands as a transaction may have, and not one more; RSET ends it."""

    def said(*between: bytes) -> list[int]:
        made = session()
        for line in (b"EHLO x", b"AUTH PLAIN AGFueQBnb29k", b"MAIL FROM:<a@b.example> X=1", *between):
            made.line(line)
        codes = []
        for _ in range(OPTIONS.max_errors + OPTIONS.max_recipients + 10):
            reply = made.line(verb)
            codes.append((made.end_of_chunk() if reply is None else reply).code)
        return codes

    # MAIL itself was an error.
    assert said().index(421) == OPTIONS.max_errors - 1 + OPTIONS.max_recipients + 1
    assert said(b"RSET").index(421) == OPTIONS.max_errors - 1


def comparisons_by_identity(source: str) -> list[int]:
    """Lines on which something is compared by identity with a reply or with a handler of a command."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops)
        and any(
            isinstance(side, ast.Attribute)
            and isinstance(side.value, ast.Name)
            and side.value.id in {"replies", "Session"}
            for side in (node.left, *node.comparators)
        )
    ]


def test_nothing_is_compared_with_a_reply_or_a_handler_by_identity() -> None:
    """`closing()` makes another object of a reply, a decorator makes another one of a method."""
    assert comparisons_by_identity("x is replies.OK\ny is not None\nz is not Session._auth") == [1, 3]
    found = {
        path.relative_to(RELAY): lines
        for path in sorted(RELAY.rglob("*.py"))
        if (lines := comparisons_by_identity(path.read_text("utf-8")))
    }
    assert found == {}
