"""Each shortcut of the parser, held against the long way on octets that are nearly what it is for."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.mail import boundary, header_block, mailbox, parameters, stored_headers, transfer_encoding
from relay.mail.header_block import Field

_LINE = st.lists(
    st.sampled_from(
        ["From", "To", "MIME-Version", "X-A", "Content-Type", ":", ": ", "a", "b c", "\t", " ", "\r", "é", "\x00", ";"]
    ),
    max_size=6,
).map("".join)
_LINE_END = st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r\n ", "\r\n\t", "\r\n \r\n", "\r\n\r\n", "\r\r\n"])
_BLOCK = st.lists(st.tuples(_LINE | st.sampled_from(["From: a@b.c", "X-B: 1"]), _LINE_END), max_size=8).map(
    lambda lines: "".join(line + end for line, end in lines).encode("latin-1")
)


@settings(max_examples=500, deadline=None)
@given(
    _BLOCK, st.sampled_from([b"", b"\r\n", b"\r\n\r\nbody\r\n\r\n", b"\n\nbody"]), st.sampled_from([b"", b"--x\r\n"])
)
def test_a_clean_header_block_is_what_the_walk_finds(block: bytes, rest: bytes, before: bytes) -> None:
    raw = before + block + rest
    short, body = header_block.read(raw, len(before), len(raw))
    # Again, now that its lines may be remembered.
    assert header_block.read(raw, len(before), len(raw)) == (short, body)
    if short.clean:
        assert header_block.read(raw, len(before), len(raw), shortcuts=False) == (short, body)


_BASE64_LINES = st.builds(
    lambda octets, width, end, last: (
        end.join([encoded[at : at + width] for encoded in (b64encode(octets),) for at in range(0, len(encoded), width)])
        + last
    ),
    # What is longer than a step is made as often as what is not.
    st.binary(max_size=100) | st.integers(0, 400).map(lambda size: bytes(range(256))[:size] * 2),
    st.sampled_from([4, 14, 20, 60, 76]),
    st.sampled_from([b"\r\n", b"\r\n", b"\n"]),
    st.sampled_from([b"", b"\r\n", b"\r\n\r\n"]),
)
_DAMAGE = st.lists(
    st.tuples(st.integers(0, 600), st.integers(0, 2), st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"A", b"=", b"!"])),
    max_size=3,
)


@pytest.mark.parametrize(("step", "many"), [(100_000, 1_000_000), (100, 1_000_000), (100_000, 20)])
def test_base64_is_kept_or_read_to_the_same_end(step: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_encoding, "_STEP", step)
    # What has more octets than `many` is read in long steps.
    monkeypatch.setattr(transfer_encoding, "_MANY", many)
    monkeypatch.setattr(transfer_encoding, "_LONG_STEP", 60)
    monkeypatch.setattr(transfer_encoding, "_MAX_WIDTH", min(step, 60 if many < step else 1024))

    @settings(max_examples=300, deadline=None)
    @given(_BASE64_LINES, _DAMAGE)
    def same(octets: bytes, damage: list[tuple[int, int, bytes]]) -> None:
        for place, removed, added in damage:
            octets = octets[:place] + added + octets[place + removed :]
        kept = transfer_encoding.to_base64(b"x\n" + octets + b"\nx", 2, 2 + len(octets), "base64")
        # Sound Base64 keeps bits in its last character that mean nothing.
        assert b64decode(kept, validate=True) == transfer_encoding.decode_base64(octets)

    same()


_QUOTED_PRINTABLE = st.lists(
    st.sampled_from(
        [b"=", b"3D", b"=3D", b"=C3=BC", b"=0D", b"=0A", b"=\r\n", b"\r\n", b"\n", b"\r", b" ", b"\t", b"a"]
    )
).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(_QUOTED_PRINTABLE)
def test_quoted_printable_and_line_ends(octets: bytes) -> None:
    trimmed = re.sub(rb"[ \t]+(?=\r?\n|\Z)", b"", octets)
    decoded = re.sub(
        rb"=(?:([0-9A-Fa-f]{2})|\r?\n|\Z)", lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"", trimmed
    )
    assert transfer_encoding.decode_quoted_printable(octets) == decoded
    assert transfer_encoding.lf_lines(octets) == octets.replace(b"\r\n", b"\n")


_VIEW = st.lists(
    st.sampled_from(
        [
            "ann",
            "bo@x.example",
            "@",
            "A B",
            '"A, B"',
            "<",
            "<c@d.example>",
            ">",
            ",",
            ";",
            " ",
            ".",
            "\t",
            "=?q?",
            "'",
            "\xa0",
            "é",
            "(x)",
            "[1]",
            "_.x",
            "-",
        ]
    ),
    max_size=5,
).map("".join)


@settings(max_examples=500, deadline=None)
@given(_VIEW)
def test_a_sole_address_is_what_the_list_holds(view: str) -> None:
    address = mailbox.sole_address(view)
    if address is not None:
        found = mailbox.parse(view, shortcuts=False).mailboxes
        assert mailbox.addresses(found, allow_utf8_local_parts=False) == ((address,), 0)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["X-A", "x-a", "X-B", "References", "To", "Content-Id", "X-" + "n" * 125, "ARC-Seal"])
            | st.integers(0, 20).map("X-{}".format),
            st.sampled_from(["", "a", "b c", "=?utf-8?q?x?=", "\xc3\xa9", "a\tb", "v" * 980, "v" * 1000]),
        ),
        max_size=20,
    )
)
def test_headers_are_stored_as_they_stand_or_weighed(fields: list[tuple[str, str]]) -> None:
    made = [Field(name.lower(), name, value) for name, value in fields]
    short, long = (stored_headers.select(made, shortcuts=shortcuts) for shortcuts in (True, False))
    assert short == long
    assert list(short[0]) == list(long[0])


_LINES_OF_DASHES = st.lists(
    st.sampled_from([b"--b", b"--b--", b"--bc", b" ", b"\r\n", b"\r\n", b"\n", b"\r", b"x", b"-", b">"]), max_size=14
).map(b"".join)


#: As `boundary.find` has it; two in a row share the line end between them.
_DELIMITER = re.compile(
    rb"(?:\A|\r?\n)--b(?:(--)?[ \t]*\r*(?:\n|\Z)|(--)[^\s0-9A-Za-z'()+_,./:=?-][^\n]{0,1000}(?:\n|\Z))"
)


@pytest.mark.parametrize("window", [8, 8192])
def test_delimiter_lines_are_where_an_expression_finds_them(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is searched at a time: in the small one nearly every line stands across a border.
    monkeypatch.setattr(boundary, "_WINDOW", window)

    @settings(max_examples=300, deadline=None)
    @given(_LINES_OF_DASHES, st.integers(0, 6), st.integers(0, 6), st.integers(0, window + 800))
    def same(octets: bytes, before: int, behind: int, far: int) -> None:
        raw = octets + b"=" * far + octets
        start, end = before, max(before, len(raw) - behind)
        expected: list[tuple[int, int, bool]] = []
        body, position = raw[start:end], 0
        while match := _DELIMITER.search(body, position):
            free = expected[-1][1] if expected else start
            expected.append((max(start + match.start(), free), start + match.end(), bool(match[1] or match[2])))
            # The line end behind it may be the one before the next.
            shared = match.end() - 1
            position = shared if body[shared:] and _DELIMITER.match(body, shared) else match.end()
        assert [tuple(each) for each in boundary.find(raw, start, end, b"b", limit=100)] == expected

    same()


_PARAMETER = st.lists(
    st.sampled_from(
        [
            "boundary",
            "=",
            '"',
            "x",
            "; ",
            ";",
            " ",
            ",",
            "charset=utf-8",
            "name=",
            "*0*",
            "=?",
            "?=",
            "\\",
            "(",
            ")",
            "é",
            "\t",
        ]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(["text/plain; ", "Multipart/Mixed;boundary=", 'a/b;\tx="', "a;", ""]), _PARAMETER, st.booleans())
def test_a_value_with_one_parameter_is_what_the_long_way_finds(start: str, rest: str, closed: bool) -> None:
    view = start + rest + ('"' if closed else "")
    assert parameters.parse(view) == parameters.parse(view, shortcuts=False)
    long = view.replace("x", "x" * 100)
    assert parameters.parse(long) == parameters.parse(long, shortcuts=False)


def test_a_domain_that_is_none_is_left_to_the_long_way() -> None:
    """Found by the fuzzer: taken for a plain mailbox, it hid from the tolerant reading what the name after it was."""
    view = "A <a@-b>, \xce\xce c@d.example"
    assert mailbox.parse(view) == mailbox.parse(view, shortcuts=False)
