"""Header values as real mail has them: raw charsets, addresses in stored headers, folded URLs, endless subjects."""

from __future__ import annotations

from email import message_from_string
from email.header import decode_header, make_header
from email.policy import default

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.mail import Fault, Message, Unusable, parse
from relay.mail.encoded_word import decode

HEAD = b"From: ann@shop.example\r\nTo: ben@mail.example\r\n"


def _parse(*lines: bytes) -> Message:
    return parse(b"\r\n".join([*lines, b"", b"x"]))


def _stored(line: str, encoding: str = "utf-8") -> str:
    """The value that is stored of a header."""
    (value,) = _parse(HEAD.rstrip(), line.encode(encoding)).headers.values()
    return value


def _decoded(value: str) -> str:
    return str(make_header(decode_header(value)))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("Sender: Jörg<joerg@shop.example>", "=?utf-8?B?SsO2cmc=?= <joerg@shop.example>"),
        ("Sender: Jörg <joerg@shop.example>", "=?utf-8?B?SsO2cmc=?= <joerg@shop.example>"),
        ('Sender: "Jörg" <joerg@shop.example>', "=?utf-8?B?SsO2cmc=?= <joerg@shop.example>"),
        ('Resent-To: "Jörg" <j@x.example>, k@x.example', "=?utf-8?B?SsO2cmc=?= <j@x.example>, k@x.example"),
        ("Sender: joerg@käse.example", "joerg@xn--kse-qla.example"),
        (
            "X-Approved: by Jörg <joerg@shop.example> (ö)",
            "by =?utf-8?B?SsO2cmc=?= <joerg@shop.example> =?utf-8?B?KMO2KQ==?=",
        ),
        ("List-Id: Käse <list.shop.example>", "=?utf-8?B?S8Okc2U=?= <list.shop.example>"),
        ("List-Help: <https://shop.example/ü>", "<https://shop.example/%C3%BC>"),
    ],
)
def test_an_address_stays_out_of_encoded_words(line: str, value: str, encoding: str) -> None:
    assert _stored(line, encoding) == value


@settings(max_examples=300)
@given(
    st.text(st.sampled_from("aö漢 .,\"'()"), max_size=12),
    st.sampled_from(["joerg@shop.example", "a.b+c@mail.example"]),
    st.text(st.sampled_from(" xö"), max_size=4),
)
def test_another_reader_finds_the_address_of_a_stored_sender(name: str, address: str, rest: str) -> None:
    line = f"Sender: {name} <{address}>{rest}"
    for value in _parse(HEAD.rstrip(), line.encode()).headers.values():
        assert value.isascii()
        if not name.isascii() and not set(name) & set('"()'):
            assert f"<{address}>" in value
            other = message_from_string(f"Sender: {value}\n\n", policy=default)
            assert address in str(other["sender"])


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"List-Unsubscribe: <https://shop.example/u?\r\n a=1&\r\n\tb=2>", "<https://shop.example/u?a=1&b=2>"),
        (b"List-Unsubscribe: <mailto:u@shop.example>,\r\n <https://shop.example/\r\n u>", None),
        (b"List-Post: <mailto:list@shop.example> (everybody may)", "<mailto:list@shop.example> (everybody may)"),
        (b"LIST-OWNER: < mailto:o@shop.example >", "<mailto:o@shop.example>"),
        (b"List-Id: The list <list.\r\n shop.example>", "The list <list.shop.example>"),
        (b"X-Note: <a b>", "<a b>"),
    ],
)
def test_blanks_in_the_brackets_of_a_list_header_are_ignored(line: bytes, value: str | None) -> None:
    (stored,) = _parse(HEAD.rstrip(), line).headers.values()
    assert stored == (value or "<mailto:u@shop.example>, <https://shop.example/u>")


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("koi8-r", "Десять новостей"),
        ("windows-1251", "Заказ принят"),
        ("gb2312", "订单已发货"),
        ("big5", "訂單已經出貨功許"),
        ("shift_jis", "表示ソフト能力"),
        ("euc-kr", "주문이 접수되었습니다"),
        ("iso-8859-2", "Łączymy się"),
        ("iso-2022-jp", "山田太郎の注文"),
    ],
)
@pytest.mark.parametrize("multipart", [False, True])
def test_raw_text_is_of_the_charset_that_the_message_declares(charset: str, text: str, multipart: bool) -> None:
    content = b"Content-Type: text/plain; charset=" + charset.encode()
    raw = text.encode(charset)
    lines = [b"Subject: " + raw, b"From: " + raw + b" <ann@shop.example>", b"To: " + raw + b" <ben@mail.example>"]
    lines.append(b"X-Name: " + raw)
    if multipart:
        lines.append(b"Content-Type: multipart/mixed; boundary=cut")
        message = parse(b"\r\n".join([*lines, b"", b"--cut", content, b"", b"x", b"--cut--", b""]))
    else:
        message = _parse(*lines, content)
    assert message.subject == text
    assert _decoded(message.sender) == f"{text} <ann@shop.example>"
    assert message.from_addresses == ("ann@shop.example",)
    assert message.to == ("ben@mail.example",)
    assert _decoded(message.headers["X-Name"]) == text


_JAPANESE = st.text(
    st.characters(min_codepoint=0x3041, max_codepoint=0x3093) | st.sampled_from("山田表示能力漢字仮名"),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200)
@given(_JAPANESE, st.booleans())
def test_octets_of_japanese_make_no_address_and_hide_none(name: str, quoted: bool) -> None:
    """Among them are those of `@`, `(`, `"`, `<`, a comma and a backslash."""
    raw = name.encode("iso-2022-jp")
    if quoted:
        raw = b'"' + raw + b'"'
    message = _parse(
        b"From: " + raw + b" <ann@shop.example>", b"To: " + raw + b" <ben@mail.example>, " + raw + b"<cy@mail.example>"
    )
    assert message.from_addresses == ("ann@shop.example",)
    assert (message.to, message.left_out) == (("ben@mail.example", "cy@mail.example"), 0)
    assert _decoded(message.sender) == f"{name} <ann@shop.example>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # One character cut across two words whose labels are two spellings of one charset.
        ("=?utf-8?Q?J=C3?= =?UTF8?Q?=B6rg?=", "Jörg"),
        ("=?gb2312?B?ts+1?= =?GBK?B?pdLR?=", None),
        ("=?shift_jis?B?lQ==?= =?sjis?Q?=5C?=", "表"),
        ("=?big5?Q?=A5?= =?Big5-HKSCS?Q?=5C?=", "功"),
        # Not one charset.
        ("=?us-ascii?Q?caf=E9?= =?utf-8?Q?=C3=A9?=", "caféé"),
    ],
)
def test_words_of_one_charset_are_joined_however_it_is_spelled(value: str, text: str | None) -> None:
    assert decode(value) == text or (text is None and "\ufffd" not in decode(value) and len(decode(value)) == 3)


@pytest.mark.parametrize(
    "word", ["word ", "漢字 ", "x", "e\u0301", "漢", "a-very-long-word-of-one-hundred-and-more-characters" * 3 + " "]
)
def test_a_long_subject_is_cut_between_words(word: str) -> None:
    whole = "Re: " + word * 2000
    subject = _parse(HEAD.rstrip(), b"Subject: " + whole.encode()).subject
    assert len(subject) <= 1024
    assert len(subject) > 900
    assert subject.endswith("…")
    kept = subject[:-1]
    assert whole.startswith(kept)
    rest = whole[len(kept) :]
    if " " in word and len(word) < 100:
        assert rest.startswith(" ")
    # No mark is parted from its letter.
    assert not rest.startswith("\u0301")


@pytest.mark.parametrize("length", [1, 1023, 1024])
def test_a_subject_that_fits_is_kept(length: int) -> None:
    assert _parse(HEAD.rstrip(), b"Subject: " + b"x" * length).subject == "x" * length


def test_the_end_of_a_header_is_never_dropped_in_silence() -> None:
    to = [b"p%d@x.example" % number for number in range(40_000)]
    folded = b"To: " + b",\r\n ".join(to)
    assert len(_parse(b"From: ann@shop.example", folded).to) == len(to)
    domains = [f"p@b\u00fccher{number}.example" for number in range(10_000)]
    assert len(_parse(b"From: ann@shop.example", b"To: " + ", ".join(domains).encode()).to) == len(domains)
    for filler in (
        b"X-Fill: x\r\n" * 5001,
        b"X-Fill: x" + b"\r\n y" * 200_001 + b"\r\n",
        b"X-Fill: " + b"x" * 4_000_001 + b"\r\n",
    ):
        with pytest.raises(Unusable) as caught:
            parse(b"From: ann@shop.example\r\n" + filler + b"To: ben@mail.example\r\n\r\nx")
        assert caught.value.fault is Fault.HEADER_TOO_LARGE
    with pytest.raises(Unusable) as caught:
        _parse(b"From: ann@shop.example", b"To: " + b"<a> " * 300_000)
    assert caught.value.fault is Fault.TOO_MANY_ADDRESSES


@settings(max_examples=300)
@given(st.text(st.sampled_from('ab@<>,"ö \r\n=?'), max_size=10))
def test_a_from_in_an_encoded_word_is_one_mailbox_or_none(name: str) -> None:
    octets = f"{name} <ann@shop.example>".encode()
    word = "=?utf-8?Q?" + "".join(f"={octet:02X}" for octet in octets) + "?="
    try:
        message = parse(f"From: {word}\r\n\r\nx".encode())
    except Unusable:
        return
    assert message.from_addresses == ("ann@shop.example",)
    assert not set("\r\n") & set(name)
    assert message.sender == "ann@shop.example" or message.sender.endswith(" <ann@shop.example>")
