"""The name of an error stands in rows, log lines and metrics: it is a word, whatever a server answers."""

from __future__ import annotations

import pytest

from relay.aws.https import Answer
from relay.aws.service import _code


@pytest.mark.parametrize(
    ("field", "member", "name"),
    [
        ("MessageRejected", None, "MessageRejected"),
        ("MessageRejected:http://internal.amazon.com/coral/", None, "MessageRejected"),
        ("", "com.amazonaws.sqs#QueueDoesNotExist", "QueueDoesNotExist"),
        ("", "AWS.SimpleQueueService.NonExistentQueue", "AWS.SimpleQueueService.NonExistentQueue"),
        ("", None, "HTTP400"),
        ("", "", "HTTP400"),
        ("", 7, "HTTP400"),
        ("", "a\0b", "HTTP400"),
        ("", "to@x.example said\nno", "HTTP400"),
        ("", "x" * 101, "HTTP400"),
        ("\x85", None, "HTTP400"),
    ],
)
def test_a_name_is_a_word(field: str, member: object, name: str) -> None:
    document = {} if member is None else {"__type": member}
    assert _code(Answer(400, b"", field), document) == name
