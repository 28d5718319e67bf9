"""What a worker, its process for large messages and the children of that process say to each other.

    worker → process   one octet a message of the channel (SOCK_SEQPACKET), with a descriptor:
                       CHILD: the child's end of a socket pair
                       SUCCESSOR: the channel of another such process, which is to be forked
    worker → child     MESSAGE with the file that has the octets, and a head, over the socket pair
    child → worker     any number of reports, over the same; the last one is a verdict, and the child is free then
    process → worker   what ended a child that gave none, over the same

Heads and reports are JSON, preceded by their length: four octets, network order. Each carries the version: both sides
are forked from one process and so have the same, but a side that meets another one must not guess.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypedDict

from config.settings import RecipientRule
from relay.core.frozen import frozen
from relay.core.records import ApiKey
from relay.smtp.replies import Reply
from relay.smtp.spool import Body
from relay.smtp.submission import Login, Submission, Verdict

if TYPE_CHECKING:
    import _socket

#: Of heads and reports. To be raised with each change of them.
VERSION: Final = 4

#: Requests to the process.
CHILD: Final = b"c"
SUCCESSOR: Final = b"s"
#: What comes before a head, with the descriptor.
MESSAGE: Final = b"m"

_LENGTH_OCTETS: Final = 4


class ForeignVersion(Exception):
    """The other side has another version of this protocol. None of its messages can be relied on."""


class Reading(StrEnum):
    """How a child reads a message."""

    #: As every message is read.
    WHOLE = "whole"
    #: Its header alone; the rest becomes an attachment (relay.mail.unread).
    HEADER = "header"


@frozen
class Request:
    """One message as a child gets it."""

    submission: Submission
    reading: Reading


@frozen
class Started:
    """A child has been forked, and read its head."""


@frozen
class Uses:
    """From now on the child uses so many octets of memory at most, the message and everything made of it."""

    octets: int


@frozen
class Died:
    """The child ended without a verdict, by this signal (0: by itself)."""

    signal: int


Report = Started | Uses | Died | Verdict


class _KeyDocument(TypedDict):
    id: str
    user_id: str
    permission: str
    domain: str | None


class _HeadDocument(TypedDict):
    version: int
    token_hash: str
    key: _KeyDocument
    recipients: Sequence[str]
    rule: str
    connection_id: str
    reverse_path: Sequence[str]
    reading: str


class _ReplyDocument(TypedDict):
    code: int
    enhanced: str
    lines: Sequence[str]
    closes: bool


class _ReportDocument(TypedDict, total=False):
    """`kind` says which of the others there are."""

    kind: str
    octets: int
    signal: int
    reply: _ReplyDocument
    outcome: str
    email_id: str
    stored: Sequence[str]


def leaves_child_free(verdict: Verdict) -> bool:
    """Whether a child that gave this verdict takes another message. After anything unusual the next message gets a
    child without a past: the child ends, and the worker expects nothing more of it."""
    return verdict.reply.code == 250


def encode_head(submission: Submission, reading: Reading) -> bytes:
    """The head of a message."""
    key = submission.login.key
    head: _HeadDocument = {
        "version": VERSION,
        "token_hash": submission.login.token_hash,
        "key": {"id": key.id, "user_id": key.user_id, "permission": key.permission, "domain": key.domain},
        "recipients": submission.recipients,
        "rule": submission.rule.value,
        "connection_id": submission.connection_id,
        "reverse_path": submission.reverse_path,
        "reading": reading.value,
    }
    return json.dumps(head).encode("ascii")


def decode_head(document: bytes, body: Body) -> Request:
    """The request that a head describes, with the file that came along. Raises ForeignVersion."""
    head: _HeadDocument = json.loads(document)
    _check(head.get("version"))
    submission = Submission(
        login=Login(head["token_hash"], ApiKey(**head["key"])),
        recipients=tuple(head["recipients"]),
        rule=RecipientRule(head["rule"]),
        body=body,
        connection_id=head["connection_id"],
        reverse_path=(head["reverse_path"][0], head["reverse_path"][1]),
    )
    return Request(submission, Reading(head["reading"]))


def encode_report(report: Report) -> bytes:
    """One report."""
    document: _ReportDocument
    match report:
        case Started():
            document = {"kind": "started"}
        case Uses(octets):
            document = {"kind": "uses", "octets": octets}
        case Died(signal):
            document = {"kind": "died", "signal": signal}
        case Verdict():
            reply = report.reply
            document = {
                "kind": "verdict",
                "reply": {
                    "code": reply.code,
                    "enhanced": reply.enhanced,
                    "lines": reply.lines,
                    "closes": reply.closes,
                },
                "outcome": report.outcome,
                "email_id": report.email_id,
                "stored": report.stored,
            }
    return json.dumps({"version": VERSION, **document}).encode("ascii")


def decode_report(document: bytes) -> Report:
    """The report that these octets are. Raises ForeignVersion."""
    report: _ReportDocument = json.loads(document)
    _check(report.get("version"))
    match report["kind"]:
        case "started":
            return Started()
        case "uses":
            return Uses(report["octets"])
        case "died":
            return Died(report["signal"])
        case "verdict":
            said = report["reply"]
            reply = Reply(said["code"], said["enhanced"], tuple(said["lines"]), closes=said["closes"])
            return Verdict(
                reply, outcome=report["outcome"], email_id=report["email_id"], stored=tuple(report["stored"])
            )
        case _:
            raise ForeignVersion


def _check(version: object) -> None:
    if version != VERSION:
        raise ForeignVersion


def send_request(channel: socket.socket, head: bytes, file: int) -> None:
    """A head, with the descriptor of the file that has the octets, to a child. Raises OSError."""
    socket.send_fds(channel, [MESSAGE], [file])
    send_message(channel, head)


def receive_request(channel: socket.socket) -> tuple[bytes, int] | None:
    """The next head and its file, which the caller closes; None when the other side closed. Raises OSError."""
    _, descriptors, _, _ = socket.recv_fds(channel, len(MESSAGE), 1)
    if not descriptors:
        return None
    head = receive_message(channel)
    if head is None:
        os.close(descriptors[0])
        return None
    return head, descriptors[0]


def send_message(channel: _socket.socket, octets: bytes) -> None:
    """One head or report to the other side. Raises OSError."""
    channel.sendall(len(octets).to_bytes(_LENGTH_OCTETS, "big") + octets)


def receive_message(channel: socket.socket) -> bytes | None:
    """The next head or report; None when the other side closed. Raises OSError."""
    length = _receive_exactly(channel, _LENGTH_OCTETS)
    return None if length is None else _receive_exactly(channel, int.from_bytes(length, "big"))


def _receive_exactly(channel: socket.socket, count: int) -> bytes | None:
    received = bytearray()
    while len(received) < count:
        octets = channel.recv(count - len(received))
        if not octets:
            return None
        received += octets
    return bytes(received)
