"""What the corpus can't say: limits, faults, the promise never to raise anything else, and time."""

from __future__ import annotations

import base64
import subprocess
import sys
import time

import pytest

from relay.mail import Fault, Limits, Unusable, parse

_HEAD = b"From: Anna <anna@sender.example>\r\nTo: bo@reader.example\r\nSubject: limits\r\nMIME-Version: 1.0\r\n"
_MIXED = _HEAD + b'Content-Type: multipart/mixed; boundary="cut"\r\n\r\n'


def _parts(*parts: bytes) -> bytes:
    return _MIXED + b"".join(b"--cut\r\n" + part + b"\r\n" for part in parts) + b"--cut--\r\n"


def _file(size: int, encoding: bytes = b"base64") -> bytes:
    octets = bytes(index % 251 for index in range(size))
    body = base64.encodebytes(octets).replace(b"\n", b"\r\n") if encoding == b"base64" else octets
    return b"Content-Type: application/pdf\r\nContent-Transfer-Encoding: " + encoding + b"\r\n\r\n" + body


def _fault(raw: bytes, limits: Limits | None = None) -> Fault:
    with pytest.raises(Unusable) as caught:
        parse(raw, limits or Limits())
    assert caught.value.detail.isascii()
    return caught.value.fault


@pytest.mark.parametrize("encoding", [b"base64", b"binary", b"quoted-printable"])
def test_attachments_are_counted_after_base64_and_together(encoding: bytes) -> None:
    raw = _parts(_file(300, encoding), _file(300, encoding))
    stored = sum(len(each.content) for each in parse(raw).attachments)
    assert len(parse(raw, Limits(max_attachment_octets=stored)).attachments) == 2
    assert _fault(raw, Limits(max_attachment_octets=stored - 1)) is Fault.ATTACHMENTS_TOO_LARGE


def test_a_body_is_no_attachment_however_large() -> None:
    raw = _HEAD + b"\r\n" + b"text " * 1000
    assert parse(raw, Limits(max_attachment_octets=10)).text == "text " * 1000


def test_parts_beyond_the_limit_become_one_attachment_with_their_octets() -> None:
    raw = _parts(*(b"\r\npart %d" % number for number in range(6)))
    message = parse(raw, Limits(max_parts=4))
    assert message.text == "part 0\npart 1\npart 2"
    (rest,) = message.attachments
    assert base64.b64decode(rest.content) == raw[raw.index(b"\r\npart 3") :]


def test_containers_beyond_the_limit_become_one_attachment_with_their_octets() -> None:
    inner = b'Content-Type: multipart/mixed; boundary="in"\r\n\r\n--in\r\n\r\nhidden\r\n--in--'
    message = parse(_parts(b"\r\nshown", inner), Limits(max_part_depth=1))
    assert message.text == "shown"
    assert [base64.b64decode(each.content) for each in message.attachments] == [inner]


def test_the_sender_survives_a_limit_of_nothing() -> None:
    assert parse(_parts(b"\r\nx"), Limits(max_parts=0, max_part_depth=0)).from_addresses == ("anna@sender.example",)


@pytest.mark.parametrize("field", [b"From", b"To", b"Cc", b"Bcc"])
def test_a_local_part_that_is_not_ascii_needs_the_setting(field: bytes) -> None:
    raw = field + b": j\xc3\xb6rg@reader.example\r\n" + _HEAD + b"\r\n"
    assert _fault(raw) is Fault.UTF8_LOCAL_PART
    assert "jörg@reader.example" in repr(parse(raw, Limits(allow_utf8_local_parts=True)))


def test_no_recipient_is_not_an_error_here() -> None:
    message = parse(b"From: anna@sender.example\r\n\r\nx")
    assert (message.to, message.cc, message.bcc) == ((), (), ())


def test_base64_is_kept_as_it_came() -> None:
    # The unused bits of the last group are not zero: decoding and encoding again would lose them.
    raw = _parts(b"Content-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nQUJD\r\nQR==\r\n")
    assert parse(raw).attachments[0].content == "QUJDQR=="


@pytest.mark.parametrize("name", ["latin-1", "utf-8"])
def test_text_across_the_steps_of_base64_cleaning_is_whole(name: str) -> None:
    octets = ("äöü" * 400_000).encode(name)
    raw = _parts(
        b"Content-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + base64.encodebytes(octets).replace(b"\n", b"\r\n")
    )
    assert base64.b64decode(parse(raw).attachments[0].content) == octets


_UNITS = [
    *(b'\\"', b'"', b"<", b">", b"(", b"()", b"a@", b"a@b,", b"<a@b>", b"a:b;"),
    *(b"=?", b"=?utf-8?q?", b" ", b"\r\n ", b"\xe4", b"\0"),
]
_FIELDS = [b"From", b"To", b"Subject", b"X-Own", b"Content-Type", b"Content-Disposition", b"References"]


@pytest.mark.parametrize("unit", _UNITS)
@pytest.mark.parametrize("field", _FIELDS)
def test_no_header_takes_longer_than_its_length(field: bytes, unit: bytes) -> None:
    _within_a_second(_HEAD + field + b": " + unit * (300_000 // len(unit)) + b"\r\n\r\nbody")


@pytest.mark.parametrize(
    "unit", [b"--cut\r\n", b"--cut--\r\n", b"--\r\n", b"-", b"\r\n", b"\n--", b"--cut\r\n\r\n", b"--cut  x\r\n"]
)
def test_no_structure_takes_longer_than_its_length(unit: bytes) -> None:
    _within_a_second(_MIXED + unit * (300_000 // len(unit)))


@pytest.mark.parametrize("encoding", [b"base64", b"quoted-printable", b"x-uuencode"])
@pytest.mark.parametrize("unit", [b"=", b"=\r", b" ", b" \t", b"= \n", b"A=", b"begin 644 a\n", b"\xff"])
def test_no_encoding_takes_longer_than_its_length(encoding: bytes, unit: bytes) -> None:
    head = b"Content-Type: image/png\r\nContent-Transfer-Encoding: " + encoding + b"\r\n\r\n"
    _within_a_second(_HEAD + head + unit * (300_000 // len(unit)))


def _within_a_second(raw: bytes) -> None:
    """CPU time, twenty times what it takes: quadratic time would be hundreds of times as much."""
    started = time.process_time()
    parse(raw)
    assert time.process_time() - started < 2


def test_importing_says_nothing_and_needs_no_warning() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import relay.mail"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
