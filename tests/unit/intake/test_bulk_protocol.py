"""Heads and reports are what they were on the other side, and those of another version are recognised."""

from __future__ import annotations

import json
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import RecipientRule
from relay.core.records import ApiKey
from relay.intake import bulk_protocol
from relay.intake.bulk_protocol import (
    Died,
    ForeignVersion,
    Reading,
    Report,
    Request,
    Started,
    Uses,
    decode_head,
    decode_report,
    encode_head,
    encode_report,
    receive_message,
    send_message,
)
from relay.smtp.replies import Reply
from relay.smtp.spool import Body
from relay.smtp.submission import Login, Submission, Verdict

texts = st.text(max_size=20)
keys = st.builds(ApiKey, texts, texts, texts, st.none() | texts)
submissions = st.builds(
    Submission,
    st.builds(Login, texts, keys),
    st.lists(texts, max_size=5).map(tuple),
    st.sampled_from(RecipientRule),
    st.just(Body(10)),
    texts,
)
numbers = st.integers(0, 1 << 60)
reports = st.one_of(
    st.builds(Started),
    st.builds(Uses, numbers),
    st.builds(Died, st.integers(0, 64)),
    st.builds(
        Verdict,
        st.builds(Reply, st.integers(200, 599), texts, st.lists(texts, min_size=1).map(tuple), st.booleans()),
        texts,
        texts,
        st.lists(texts).map(tuple),
    ),
)


@given(submissions, st.sampled_from(Reading))
def test_a_head_is_what_it_was(submission: Submission, reading: Reading) -> None:
    assert decode_head(encode_head(submission, reading), submission.body) == Request(submission, reading)


@given(reports)
def test_a_report_is_what_it_was(report: Report) -> None:
    assert decode_report(encode_report(report)) == report


@pytest.mark.parametrize("version", [None, 1, bulk_protocol.VERSION + 1, "2"])
def test_another_version_is_never_guessed_at(version: object) -> None:
    document = json.loads(encode_report(Started())) | {"version": version}
    with pytest.raises(ForeignVersion):
        decode_report(json.dumps(document).encode())
    with pytest.raises(ForeignVersion):
        decode_head(b"{}", Body(10))
    with pytest.raises(ForeignVersion):
        decode_report(json.dumps({"version": bulk_protocol.VERSION, "kind": "news"}).encode())


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(0, 3))
def test_messages_end_where_they_ended_and_a_torn_one_is_none(messages: list[bytes], torn: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for message in messages:
            send_message(ours, message)
        ours.sendall(b"\0" * torn)
        ours.shutdown(socket.SHUT_WR)
        assert [receive_message(theirs) for _ in range(len(messages) + 1)] == [*messages, None]


def test_a_large_message_arrives_whole() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=send_message, args=(ours, b"x" * 5_000_000))
        sender.start()
        assert receive_message(theirs) == b"x" * 5_000_000
        sender.join()
