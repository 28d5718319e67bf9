"""What goes into a well-formed message comes out: field by field, octet by octet, the short way and the long way.

The standard library's `email` reads every message too: where it disagrees with the model, the model or the builder is
wrong.
"""

from __future__ import annotations

import base64
import dataclasses
import email
import email.policy
from email.header import decode_header, make_header
from email.message import EmailMessage

from hypothesis import HealthCheck, example, given, settings

from relay.mail import Limits, Message, html_joining, html_text
from relay.mail.reader import parse
from tests.differential.message_builder import (
    Body,
    File,
    Forwarded,
    Mailbox,
    Model,
    Multipart,
    build,
    expected,
    leaves,
    models,
)


def _read(raw: bytes) -> Message:
    short, long = (parse(raw, Limits(), shortcuts=shortcuts) for shortcuts in (True, False))
    assert dataclasses.replace(short, parser="") == dataclasses.replace(long, parser="")
    assert long.parser == "flanker"
    assert short.parser in ("flanker", "shortcut")
    return short


def _words(text: str) -> str:
    return str(make_header(decode_header(text)))


def _name_of(sender: str) -> str:
    phrase = sender.rpartition(" <")[0]
    if phrase.startswith('"'):
        phrase = phrase[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return _words(phrase) if "=?" in phrase else phrase


def _unique(mailboxes: tuple[Mailbox, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(mailbox.address for mailbox in mailboxes))


_PLAIN = Model(
    Mailbox("Jörg", "a@b.example"),
    (Mailbox("", "c@d.example"),),
    (),
    "x",
    (),
    Body("x\n", "plain", "utf-8", "8bit"),
    False,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models())
@example(_PLAIN)
@example(dataclasses.replace(_PLAIN, root=Multipart("mixed", (_PLAIN.root, Forwarded("s", b"Subject: s\r\n\r\n")), "")))
def test_what_goes_in_comes_out(model: Model) -> None:
    message = _read(build(model))
    assert message.from_addresses == (model.sender.address,)
    assert message.sender.removesuffix(f"<{model.sender.address}>").strip() != message.sender or not model.sender.name
    if model.sender.name and model.sender.name != model.sender.address:
        assert _name_of(message.sender) == model.sender.name
    assert (message.to, message.cc) == (_unique(model.to), _unique(model.cc))
    assert message.subject == model.subject
    wanted: dict[str, list[str]] = {}
    for name, value in model.headers:
        wanted.setdefault(name, []).append(value)
    assert {name: _words(value) for name, value in message.headers.items()} == {
        name: ", ".join(values) for name, values in wanted.items()
    }
    content = expected(model.root)
    # The pieces and their order are the model's; how one form is made of the other has separate tests.
    text = "\n".join(filter(None, (html_text.reduced(text) if is_html else text for text, is_html in content.text)))
    html = [text if is_html else html_text.escaped(text.removesuffix("\n")) for text, is_html in content.html]
    assert message.html == (html_joining.join(html) if html else "")
    assert message.text == (text or ("" if html else "\n"))
    assert len(message.attachments) == len(content.files)
    for stored, file in zip(message.attachments, content.files, strict=True):
        octets = base64.b64decode(stored.content, validate=True)
        if isinstance(file, Body):
            assert stored.content_type == f"text/{file.subtype}; charset={file.charset}"
            continue
        assert octets == file.octets
        if isinstance(file, Forwarded):
            assert (stored.filename, stored.content_type) == (f"{file.subject}.eml", "message/rfc822")
        else:
            assert (stored.filename, stored.content_type, stored.content_id) == (
                file.name,
                file.media_type,
                file.content_id,
            )


def _leaf_parts(message: EmailMessage) -> list[EmailMessage]:
    if message.get_content_maintype() == "multipart":
        return [leaf for part in message.iter_parts() for leaf in _leaf_parts(part)]
    return [message]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models())
def test_the_standard_library_agrees(model: Model) -> None:
    raw = build(model)
    message = _read(raw)
    other = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(other, EmailMessage)
    parts = _leaf_parts(other)
    ours = leaves(model.root)
    assert len(parts) == len(ours)
    files = [id(file) for file in expected(model.root).files]
    attached = iter(message.attachments)
    for part, leaf in zip(parts, ours, strict=True):
        if isinstance(leaf, File):
            assert part.get_payload(decode=True) == base64.b64decode(next(attached).content)
        elif isinstance(leaf, Forwarded):
            assert part.get_content_type() == "message/rfc822"
            next(attached)
        elif id(leaf) in files:
            next(attached)
        else:
            octets = part.get_payload(decode=True)
            assert isinstance(octets, bytes)
            assert octets.decode(leaf.charset, "replace").count("\n") == leaf.text.count("\n")
    assert next(attached, None) is None
    if not model.raw_headers:
        assert " ".join(str(other["Subject"]).split()) == message.subject
        assert tuple(dict.fromkeys(each.addr_spec for each in other["To"].addresses)) == message.to
