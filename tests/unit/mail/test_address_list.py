"""Address fields as people and programs write them: the addresses that a message names get it, and no other."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.mail import Unusable, mailbox, parse

A, B, C = "amy@corp.example", "ben@mail.example", "cy@mail.example"


def _read(value: str, *, shortcuts: bool = True) -> tuple[list[str], int]:
    """The addresses of a field of recipients, and how many of its entries were left out."""
    view = value.encode("utf-8", "surrogateescape").decode("latin-1")
    found = mailbox.parse(view, shortcuts=shortcuts)
    addresses, left_out = mailbox.addresses(found.mailboxes, allow_utf8_local_parts=False)
    return list(addresses), found.left_out + left_out


def _sender(value: str) -> str | None:
    try:
        return parse(f"From: {value}\r\n\r\nx".encode()).sender
    except Unusable:
        return None


@pytest.mark.parametrize(
    ("value", "addresses", "left_out"),
    [
        # What programs print for a list
        (f"['{A}', '{B}']", [A, B], 0),
        (f'["{A}","{B}"]', [A, B], 0),
        (f'["{A}"]', [A], 0),
        (f"('{A}', '{B}')", [A, B], 0),
        (f"('{A}',)", [A], 0),
        (f"{{'{A}', '{B}'}}", [A, B], 0),
        (f"{{{A}, {B}}}", [A, B], 0),
        (f"[{A}, {B}]", [A, B], 0),
        (f"[{A} {B}]", [A, B], 0),
        (f'["{A}" "{B}"]', [A, B], 0),
        (f"[[{A}], [{B}]]", [A, B], 0),
        (f"['Amy <{A}>', 'Ben <{B}>']", [A, B], 0),
        (f'["Amy <{A}>","Smith, Ben <{B}>"]', [A, B], 0),
        (f"'{A}, {B}'", [A, B], 0),
        (f'"{A}, {B}"', [A, B], 0),
        (f"`{A}`", [A], 0),
        (f"``{A}''", [A], 0),
        (f"\u201c{A}\u201d, \u2018{B}\u2019, \u00ab{C}\u00bb", [A, B, C], 0),
        (f"\u201e{A}\u201c", [A], 0),
        (f"\u201c{A}; {B}\u201d", [A, B], 0),
        (f"to: ['{A}', '{B}']", [A, B], 0),
        (f"{A};{B} ; {C};", [A, B, C], 0),
        (f"<{A}, {B}>", [A, B], 0),
        (f"{A} {B}", [A, B], 0),
        ("Array", [], 1),
        ("None", [], 1),
        ("[object Object]", [], 1),
        (f"undefined, {A}", [A], 1),
        # Whole, with something around it
        (f"<<{A}>>", [A], 0),
        (f"Amy <mailto:{A}>, MAILTO:{B}", [A, B], 0),
        (f"<mailto:{A}?subject=Hi>", [A], 0),
        (f"Amy <{A}<mailto:{A}>>", [A], 0),
        (f"\ufeff{A}, \u200b{B}\u200b", [A, B], 0),
        (f"\u00a0{A}\u00a0,\u3000{B}", [A, B], 0),
        (f"{A}!, {B}.", [A, B], 0),
        (f"Amy ({A}) <{B}>", [B], 0),
        (f"{A} (work (and home)), {B}", [A, B], 0),
        (f"Team: {A}, {B};, None: ;", [A, B], 0),
        (f"<@one.example,@two.example:{A}>", [A], 0),
        ("amy@corp\u3002example, ben@mail\uff0eexample, cy@mail\uff61example.", [A, B, C], 0),
        ("amy @ corp . example, <ben@(x)mail.(y)example>", [A, B], 0),
        ("amy%corp.example@relay.example", ["amy%corp.example@relay.example"], 0),
        (f"[u'{A}', b'{B}'], u'{C}'", [A, B, C], 0),
        (f"<{A};>, <,{B}>", [A], 1),
        (f"\0{A}\0, {B}\x1f", [A, B], 0),
        (f"\u2022 {A}, {B}\u2026", [A, B], 0),
        # Not whole
        ("am\0y@corp.example", [], 1),
        ("Amy <am\0y@corp.example>", [], 1),
        ("am\x1fy@corp.example", [], 1),
        ("Amy am\x7fy@corp.example, ben@mail.example", [B], 1),
        ("amy@corp.ex\x01ample", [], 1),
        ("amy@corp.example\x02ben@mail.example", [], 1),
        ("\u2013amy@corp.example, am\u200by@corp.example, amy\u200b@corp.example", [], 3),
        ("<amy@corp.example%other.example>", [], 1),
        ("<amy@corp.example%other.example>, ben@mail.example", [B], 1),
        ("amy@corp.example%other.example", [], 1),
        ("amy@exa*mple.com", [], 1),
        ("amy@exa\\mple.com", [], 1),
        ("<__Link(Aan,15@aol.example>", [], 1),
        ("__Link(Aan,15@aol.example", [], 1),
        ("<x(amy@corp.example>", [], 1),
        ("<amy smith@corp.example>", [], 1),
        ("Amy <amy\tsmith@corp.example>", [], 1),
        ("<noreply@customer support.corp.example>", [], 1),
        ("noreply@customer support.corp.example", [], 1),
        ("amy@corp.example/ben@mail.example", [], 1),
        ("amy@corp.example|ben@mail.example", [], 1),
        ("amy@corp.example&ben@mail.example", [], 1),
        ("amy@corp.example=ben", [], 1),
        ("'amy@corp.example", [], 1),
        ("amy@corp.example'", [], 1),
        ("{amy@corp.example", [], 1),
        ("amy@corp.example}", [], 1),
        ("<amy@corp.example, nobody>", [], 1),
        ("amy@@corp.example", [], 1),
        ("amy@corp.example@mail.example", [], 1),
        ("amy@[192.0.2.1], amy@[IPv6:2001:db8::1]", [], 2),
        ("amy@corp.example:25", [], 2),
        ("root@localhost, ben@mail.example", [B], 1),
        ("=?utf-8?q?amy?=@corp.example", [], 1),
        ("<=?utf-8?q?amy=40corp.example?=>", [], 1),
        # A name is no address
        ('"boss@corp.example" <x@y@other.example>', [], 1),
        ("boss@corp.example <x@y@other.example>", [], 1),
        ('"boss@corp.example" <>', [], 1),
        ("boss@corp.example <>", [], 1),
        ("'boss@corp.example' <nobody>", [], 1),
        ('"boss@corp.example" <amy>, ben@mail.example', [B], 1),
        ("(boss@corp.example)", [], 1),
        ("(boss@corp.example) <>", [], 1),
        ('"boss@corp.example" and others', [], 1),
        ("=?utf-8?q?boss=40corp.example?= <x@y@other.example>", [], 1),
        # A field of encoded words that are one mailbox
        ("=?utf-8?Q?Amy_<amy=40corp.example>?=", [A], 0),
        ("=?utf-8?B?QW15IDxhbXlAY29ycC5leGFtcGxlPg==?=", [A], 0),
        ("=?utf-8?Q?Amy?= =?utf-8?Q?_<amy=40corp.example>?=", [A], 0),
        ("=?utf-8?Q?Amy_<amy=40corp.example>,_ben=40mail.example?=", [], 1),
        ("=?utf-8?Q?Amy=0D=0A_<amy=40corp.example>?=", [], 1),
        ("=?utf-8?Q?ben=40mail.example_<amy=40corp.example>?=", [], 1),
        ("=?utf-8?Q?ben_=40_mail.example_<amy=40corp.example>?=", [], 1),
        ("=?utf-8?Q?Sales_@_Acme_<amy=40corp.example>?=", [A], 0),
        ("=?utf-8?Q?Amy_<amy=40corp.example>?=, ben@mail.example", [B], 1),
    ],
)
def test_who_is_named_and_what_is_left_out(value: str, addresses: list[str], left_out: int) -> None:
    assert _read(value) == (addresses, left_out)
    assert _read(value, shortcuts=False) == (addresses, left_out)


@pytest.mark.parametrize(
    ("value", "sender"),
    [
        ("Sales @ Acme <sales@acme.example>", '"Sales @ Acme" <sales@acme.example>'),
        ("Joe@Home <joe@acme.example>", '"Joe@Home" <joe@acme.example>'),
        ("info@acme.example <sales@acme.example>", '"info@acme.example" <sales@acme.example>'),
        ("Shop Team,<news@shop.example>", "Shop Team <news@shop.example>"),
        ('"Shop Team", <news@shop.example>', "Shop Team <news@shop.example>"),
        ("Shop <shop.example>, Shop <news@shop.example>", "Shop <news@shop.example>"),
        ("Shop, Shop <news@shop.example>", "Shop <news@shop.example>"),
        ("Foo, Bar, PhD <news@shop.example>", '"Foo, Bar, PhD" <news@shop.example>'),
        ("<news@shop.example> Shop Team", "Shop Team <news@shop.example>"),
        ("news@shop.example (Shop Team)", "Shop Team <news@shop.example>"),
        ("['Shop Team <news@shop.example>']", "Shop Team <news@shop.example>"),
        ("\u201cShop\u201d <news@shop.example>", "=?utf-8?B?4oCcU2hvcOKAnQ==?= <news@shop.example>"),
        ("\u201cnews@shop.example\u201d", "news@shop.example"),
        ("=?utf-8?B?U2hvcCA8bmV3c0BzaG9wLmV4YW1wbGU+?=", "Shop <news@shop.example>"),
        ("=?utf-8?Q?Caf=C3=A9_<news=40shop.example>?=", "=?utf-8?B?Q2Fmw6k=?= <news@shop.example>"),
        ("=?utf-8?Q?news=40shop.example?=", None),
        ("<news@shop.example%other.example>", None),
        ("Shop <>", None),
    ],
)
def test_what_the_sender_is_called(value: str, sender: str | None) -> None:
    assert _sender(value) == sender


_PIECES = st.sampled_from(
    [
        *(A, B, "a@b.example", "x.y+z@sub.b.example", "é@b.example", "a@bücher.example", '"a b"@b.example'),
        *"<>()[]{}\"'`\\,;: \t@.!?%*/|=+",
        *("word", "Two Words", "mailto:", "=?utf-8?q?a=40b.example?=", "=?utf-8?q?", "?=", "=40"),
        *(
            "\u201c",
            "\u201d",
            "\u2019",
            "\u00a0",
            "\u3000",
            "\u200b",
            "\ufeff",
            "\u3002",
            "\u2013",
        ),
        *("\0", "\x01", "\x1f", "\x7f"),
    ]
)
_HOSTILE = st.lists(_PIECES, min_size=1, max_size=14).map("".join)
#: What can't stand beside an address that is part of nothing longer: the characters of a local part before it, those of
#: a domain, and what joins one to something else, behind it. What programs put around it comes in pairs, and a control
#: character parts nothing.
_CONTROLS = r"[\x00-\x08\x0e-\x1f\x7f]*"
_BEFORE = re.compile(rf"[A-Za-z0-9!#$%&*+/=?^_|~.@\\\u00c0-\u024f\u2013-]\Z|[A-Za-z0-9@\u00c0-\u024f]{_CONTROLS}\Z")
_BEHIND = re.compile(
    rf"{_CONTROLS}[A-Za-z0-9_@%*/=+#$&^~|\u00c0-\u024f\u2013-]|{_CONTROLS}[.!?\\]{_CONTROLS}[A-Za-z0-9\u00c0-\u024f]"
)


def _texts(value: str) -> list[str]:
    """The field, and the field without what RFC 5322 and RFC 6068 allow within an address and behind it."""
    bare = re.sub("[\t-\r\u0020\u00a0\u3000]+", " ", value)
    for _ in range(5):
        bare = re.sub(r" ?\((?:\\.|[^()\\])*\) ?", "", bare)
    # What a mailto: URL asks for is no part of its address.
    bare = re.sub(r"(mailto:[^\s?]*)\?\S*", r"\1", bare, flags=re.IGNORECASE)
    return [value, bare, re.sub(r" ?([@.]) ?", r"\1", bare), re.sub(r" ([@.]) ?", r"\1", bare)]


def _stands_alone(address: str, value: str) -> bool:
    """Whether the address is somewhere in the field between characters that can't be part of it."""
    written = re.escape(address).replace("xn\\-\\-bcher\\-kva", "b[üÜ]cher").replace(r"\.", "[.\u3002][\u200b\ufeff]*")
    return any(
        not _BEFORE.search(text[: match.start()]) and not _BEHIND.match(text[match.end() :])
        for text in _texts(value)
        for match in re.finditer(written, text, re.IGNORECASE)
    )


def test_the_property_below_can_fail() -> None:
    for value in (
        "<amy@corp.example%other.example>",
        "xamy@corp.example",
        "am\0amy@corp.example",
        "amy@corp.example.x",
        "amy@corp.examples",
    ):
        assert not _stands_alone(A, value)
    for value in (f"Amy <{A}>", f"{A}!", f"['{A}']", "amy@corp (x) . example"):
        assert _stands_alone(A, value)


@settings(max_examples=1500, deadline=None)
@given(_HOSTILE)
def test_every_stored_address_stands_in_the_field(value: str) -> None:
    view = value.encode("utf-8", "surrogateescape").decode("latin-1")
    ways = [mailbox.parse(view, shortcuts=shortcuts) for shortcuts in (True, False)]
    stored = []
    for found in ways:
        addresses, left_out = mailbox.addresses(found.mailboxes, allow_utf8_local_parts=True)
        stored.append((addresses, left_out + found.left_out))
        for address in addresses:
            unquoted = address if not address.startswith('"') else None
            assert unquoted is None or _stands_alone(unquoted, value), (address, found)
    assert stored[0] == stored[1]


_LISTED = st.lists(
    st.sampled_from([A, B, C, "d.e+f@x.example", "o'neil@x.example"]), min_size=1, max_size=4, unique=True
)
_PRINTED = [
    str,
    json.dumps,
    lambda each: str(tuple(each)),
    lambda each: "{" + str(each)[1:-1] + "}",
    lambda each: "[" + ", ".join(each) + "]",
    lambda each: "[" + " ".join(each) + "]",
    lambda each: "[" + "; ".join(f"<{one}>" for one in each) + "]",
    lambda each: json.dumps([f"Name, First <{one}>" for one in each]),
    lambda each: "\u201c" + "\u201d, \u201c".join(each) + "\u201d",
    lambda each: "<" + ", ".join(each) + ">",
]


@pytest.mark.parametrize("printed", range(len(_PRINTED)))
@given(listed=_LISTED)
def test_a_list_means_the_same_in_the_brackets_of_a_program(printed: int, listed: list[str]) -> None:
    value = _PRINTED[printed](listed)
    assert _read(value) == (listed, 0)
    assert _read(value, shortcuts=False) == (listed, 0)
    message = parse(f"From: {A}\r\nTo: {value}\r\n\r\nx".encode())
    assert (list(message.to), message.left_out) == (listed, 0)


@given(
    st.lists(
        st.sampled_from([f"{A},", f"Ben <{B}>,", "Two Words,", '"quoted" ', f"group: {C};", "(comment) "]), max_size=5
    )
)
def test_brackets_around_a_field_change_nothing(pieces: list[str]) -> None:
    value = "".join(pieces).rstrip(", ")
    plain, bracketed = _read(value), _read(f"[{value}]")
    assert plain == bracketed
