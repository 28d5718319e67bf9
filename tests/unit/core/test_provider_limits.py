"""What a provider takes, as both ways look at it."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core import provider_limits
from relay.core.provider_limits import composed_octets, refused_extension
from relay.delivery.row import OutgoingAttachment, OutgoingEmail
from tests.support.composing import compose


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("a.exe", "exe"),
        ("A.EXE", "exe"),
        ("a.exe. ", "exe"),
        ("archive.tar.js", "js"),
        ("exe", None),
        ("a.pdf", None),
        ("a.exe.pdf", None),
        ("", None),
        (".bat", "bat"),
    ],
)
def test_extensions(name: str, extension: str | None) -> None:
    assert refused_extension(name) == extension


@given(st.text(max_size=2000), st.text(max_size=2000), st.binary(max_size=2000), st.booleans())
def test_no_mail_is_larger_than_its_bound(text: str, html: str, content: bytes, exact: bool) -> None:
    characters = base64.b64encode(content).decode()
    email = OutgoingEmail(
        id="6f1c0b0e-0000-4000-8000-000000000001",
        user_id="user",
        sender="ann@example.com",
        to=("to@x.example",),
        cc=(),
        bcc=(),
        reply_to=(),
        subject="Hello",
        html=html,
        text=text,
        headers={},
        attachments=(OutgoingAttachment("a.pdf", characters, None, "application/pdf", None),),
        retries=0,
        created_at=datetime(2026, 11, 26, tzinfo=UTC),
    )
    with pytest.MonkeyPatch.context() as patch:
        if exact:
            patch.setattr(provider_limits, "_SURELY_SMALL", 0)
        bound = composed_octets((html, text), len(characters))
    assert len(compose(email).octets) <= bound + 100_000
