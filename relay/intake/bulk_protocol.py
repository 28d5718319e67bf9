"""What a worker and its process for large messages say to each other.

    parent → child   the settings, once; then for each message a head (JSON) with the descriptor of the spooled file
    child → parent   verdicts (JSON), in any order: each names the message that it is for

Each is preceded by its length, four octets, network order.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from typing import Any, Final

from config.settings import RecipientRule
from relay.core.records import ApiKey
from relay.smtp.replies import Reply
from relay.smtp.spool import Body
from relay.smtp.submission import Login, Submission, Verdict

LENGTH_OCTETS: Final = 4


def head_of(number: int, submission: Submission) -> bytes:
    head = {
        "number": number,
        "token_hash": submission.login.token_hash,
        "key": asdict(submission.login.key),
        "recipients": submission.recipients,
        "rule": submission.rule.value,
        "connection_id": submission.connection_id,
    }
    return json.dumps(head).encode("ascii")


def submission_of(head: dict[str, Any], body: Body) -> Submission:
    """The submission that a head describes, with the file that came along."""
    return Submission(
        login=Login(head["token_hash"], ApiKey(**head["key"])),
        recipients=tuple(head["recipients"]),
        rule=RecipientRule(head["rule"]),
        body=body,
        connection_id=head["connection_id"],
    )


def answer_of(number: int, verdict: Verdict) -> bytes:
    """What the process says of the message that came with that number."""
    reply = verdict.reply
    answer = {
        "number": number,
        "reply": [reply.code, reply.enhanced, reply.lines, reply.closes],
        "outcome": verdict.outcome,
        "email_id": verdict.email_id,
        "stored": verdict.stored,
    }
    return json.dumps(answer).encode("ascii")


def verdict_of(answer: dict[str, Any]) -> Verdict:
    code, enhanced, lines, closes = answer["reply"]
    reply = Reply(code, enhanced, tuple(lines), closes)
    return Verdict(reply, answer["outcome"], answer["email_id"], tuple(answer["stored"]))


def send_message(channel: socket.socket, octets: bytes, descriptors: list[int] | None = None) -> None:
    """One message to the other side, with open files. Raises OSError."""
    length = len(octets).to_bytes(LENGTH_OCTETS, "big")
    if descriptors:
        socket.send_fds(channel, [length], descriptors)
    else:
        channel.sendall(length)
    channel.sendall(octets)


def receive_exactly(channel: socket.socket, count: int) -> bytes | None:
    """The next octets; None when the other side closed. Raises OSError."""
    received = b""
    while len(received) < count:
        octets = channel.recv(count - len(received))
        if not octets:
            return None
        received += octets
    return received


def receive_message(channel: socket.socket) -> bytes | None:
    """The next message without files; None when the other side closed. Raises OSError."""
    length = receive_exactly(channel, LENGTH_OCTETS)
    return None if length is None else receive_exactly(channel, int.from_bytes(length, "big"))
