"""What is said of an error: enough to find it, nothing that it carried."""

from __future__ import annotations

import errno
import socket

import psycopg2
import pytest
from botocore.exceptions import ClientError

from config import redaction
from relay.core.errors import PostgresUnavailable


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001 - whatever it was
        return caught


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (ValueError("someone@example.org"), "ValueError"),
        (KeyError("os_live_1"), "KeyError"),
        (UnicodeDecodeError("utf-8", b"secret", 0, 1, "bad"), "UnicodeDecodeError"),
        (psycopg2.OperationalError("DETAIL: Key (email)=(a@b.c)"), "psycopg2.OperationalError"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "a text"), "ConnectionRefusedError(ECONNREFUSED)"),
        (socket.gaierror(-2, "Name or service not known"), "socket.gaierror(-2)"),
        (OSError("only a text"), "OSError"),
        (FileNotFoundError(errno.ENOENT, "no", "/home/someone/secret"), "FileNotFoundError(ENOENT)"),
        (
            AttributeError("'NoneType' object has no attribute 'x'"),
            "AttributeError('NoneType' object has no attribute 'x')",
        ),
        (ModuleNotFoundError("No module named 'x'"), "ModuleNotFoundError(No module named 'x')"),
        (PostgresUnavailable(), "relay.core.errors.PostgresUnavailable(postgres)"),
        (
            ClientError({"Error": {"Code": "AccessDenied", "Message": "arn:secret"}}, "SendMessage"),
            "botocore.exceptions.ClientError(AccessDenied)",
        ),
    ],
)
def test_summaries(error: BaseException, summary: str) -> None:
    assert redaction.summary(raised(error)) == summary


def test_causes_are_named() -> None:
    cause = raised(psycopg2.OperationalError("a@b.c"))
    assert redaction.summary(raised(PostgresUnavailable(), cause)) == (
        "relay.core.errors.PostgresUnavailable(postgres) from psycopg2.OperationalError"
    )


def test_a_suppressed_context_is_not_named() -> None:
    def fail() -> None:
        try:
            raise KeyError("x")
        except KeyError:
            raise ValueError("y") from None

    with pytest.raises(ValueError, match="y") as caught:
        fail()
    assert redaction.summary(caught.value) == "ValueError"


def test_a_circle_of_causes_ends() -> None:
    one, other = ValueError(), KeyError()
    one.__cause__, other.__cause__ = other, one
    assert redaction.summary(one) == "ValueError from KeyError"


def test_frames_are_places() -> None:
    def inner(secret: str) -> None:
        raise ValueError(secret)

    with pytest.raises(ValueError, match="os_live_1") as caught:
        inner("os_live_1")
    outermost, innermost = redaction.frames(caught.value.__traceback__)
    assert outermost.startswith("unit/config/test_redaction.py:")
    assert innermost.endswith("inner")
    assert "os_live_1" not in outermost + innermost


def test_deep_recursion_keeps_the_innermost_frames() -> None:
    def dive(depth: int) -> None:
        if depth == 0:
            raise ValueError("bottom")
        dive(depth - 1)

    with pytest.raises(ValueError, match="bottom") as caught:
        dive(200)
    assert len(redaction.frames(caught.value.__traceback__)) == redaction.MAX_FRAMES
