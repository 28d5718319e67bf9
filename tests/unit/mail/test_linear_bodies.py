"""Work that grows with the square of a message's length: none in transfer encodings and in what flanker is given."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from relay.mail import parse, transfer_encoding
from relay.mail.flanker_scan import Unfit, scan

_HEAD = b"From: a@b.example\r\nMIME-Version: 1.0\r\n"
_BLANKS = [b" ", b"\t", b" \t", b"\r\n  ", b"\n  ", b" \r", b"7", b"7 ", b"-", b" x"]
_ENDS = [b"", b"\rX", b"\r\n", b"\rX\n", b"x", b"(", b'"', b"=?", b"?="]


def _grows_linearly(read: Callable[[int], object], size: int) -> None:
    """Eight times the length takes less than 32 times the CPU time: it would be 64 times with the square.

    The least of several runs counts, so that a pause for garbage is none of it; what takes under 20 ms is not worth a
    ratio.
    """
    for _ in range(5):
        short, long = _seconds(read, size // 8), _seconds(read, size)
        if long < max(0.02, 32 * short):
            return
    pytest.fail(f"{short:.4f} s for {size // 8} octets, {long:.4f} s for {size}")


def _seconds(read: Callable[[int], object], size: int) -> float:
    started = time.process_time()
    read(size)
    return time.process_time() - started


@pytest.mark.parametrize("end", _ENDS)
@pytest.mark.parametrize("unit", _BLANKS)
@pytest.mark.parametrize("begin", [b"begin 644", b"begin", b"begin 64", b"begin-base64 644 ", b"x\nbegin 644 a"])
def test_the_begin_line_of_uuencoded_text_is_read_once(begin: bytes, unit: bytes, end: bytes) -> None:
    def read(size: int) -> None:
        octets = begin + unit * (size // len(unit)) + end
        transfer_encoding.decode(octets, "uuencode")
        transfer_encoding.uuencoded_name(octets)

    _grows_linearly(read, 40_000)


@pytest.mark.parametrize("disposition", [b"", b"Content-Disposition: attachment\r\n"])
def test_a_mail_of_uuencoded_blanks_is_read_once(disposition: bytes) -> None:
    fields = _HEAD + disposition + b"Content-Transfer-Encoding: x-uuencode\r\n\r\nbegin 644"
    _grows_linearly(lambda size: parse(fields + b" " * size + b"\rX"), 100_000)


@pytest.mark.parametrize("end", _ENDS)
@pytest.mark.parametrize("unit", _BLANKS)
@pytest.mark.parametrize("begin", [b"a=", b'a="', b"a", b"", b"a=b;", b"boundary=x; a="])
def test_parameters_are_read_once(begin: bytes, unit: bytes, end: bytes) -> None:
    fields = _HEAD + b"Content-Type: multipart/mixed; " + begin
    _grows_linearly(lambda size: parse(fields + unit * (size // len(unit)) + end + b"\r\n\r\n--x\r\n\r\ny"), 32_000)


@pytest.mark.parametrize("unit", [b" ", b"\t", b"\r\n  ", b"\n\t\t"])
def test_flanker_gets_no_long_row_of_blanks(unit: bytes) -> None:
    fields = _HEAD + b"Content-Type: multipart/mixed; boundary=x; a="
    short, long = (fields + unit * count + b"b\r\n\r\n--x\r\n\r\ny\r\n--x--" for count in (20, 200))
    assert len(scan(short).parts) == 1
    with pytest.raises(Unfit, match="size"):
        scan(long)


def test_base64_in_uuencode_is_decoded() -> None:
    octets = b"begin-base64 644 a b.txt\r\nSGVsbG8g\r\nd29ybGQ=\r\n====\r\n"
    assert transfer_encoding.decode(octets, "uuencode") == b"Hello world"
    assert transfer_encoding.uuencoded_name(octets) == "a b.txt"
