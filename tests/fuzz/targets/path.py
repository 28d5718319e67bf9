"""The argument of MAIL and RCPT: what is read can be written and read again, and is stored in one form alone."""

from __future__ import annotations

from collections.abc import Iterator

from relay.core.address import MAX_ADDRESS_LENGTH, BadAddress, domain_of, normalise
from relay.mail import mailbox
from relay.smtp.path import Path, parse_path

TOKENS = (
    b"<",
    b">",
    b"@",
    b'"',
    b"\\",
    b"SIZE=",
    b"BODY=8BITMIME",
    b"SMTPUTF8",
    b"xn--",
    b"[127.0.0.1]",
    b"\xc2\xa0",
    b"\xe3\x80\x82",
)
MAX_OCTETS = 256


def seeds() -> Iterator[bytes]:
    """Inputs to begin with."""
    yield from (
        b"<a@b.example>",
        b"<>",
        b" < a@b.example > SIZE=10 BODY=8BITMIME",
        b"a@b.example size=1",
        b"<@one.example,@two.example:a@b.example>",
        b'<"a b\\"\\\\c"@d.example>',
        b'<"@>"@b.example> X=1=2',
        b"<a@[192.0.2.1]>",
        "<ü@bücher.example> SMTPUTF8".encode(),
        "<a@Ⅷ.example.>".encode(),
        "<a@b.example。>".encode(),
        "<a@b.example.\u00ad>".encode(),
        b"<a@xn--bcher-kva.example>",
        b"<a@b>\tA=1\tB=2",
        b"<a@b\xff.example>",
        b'<"\xf0\x9f\x98\x80"@b.example>',
    )


def check(octets: bytes) -> None:
    """Raises AssertionError where a path doesn't survive being written, or an address has two stored forms."""
    # As a session reads a line: without line ends and other controls.
    argument = octets.decode("utf-8", "surrogateescape").strip(" \t")
    if any(character < " " and character != "\t" for character in argument) or "\x7f" in argument:
        return
    path = parse_path(argument)
    if path is None:
        return
    assert not set(path.domain) & set('<>@" \t\r\n')
    assert all(keyword and keyword == keyword.upper() and "=" not in keyword for keyword in path.parameters)
    assert not any(set(value) & set(" \t") for value in path.parameters.values())
    assert path.null is not bool(path.local or path.domain)
    if path.local:
        assert parse_path(_written(path)) == path
    for allowed in (False, True):
        _check_address(path, allowed)


def _written(path: Path) -> str:
    """The path as a strict client writes it."""
    quoted = path.local.replace("\\", "\\\\").replace('"', '\\"')
    at = f"@{path.domain}" if path.domain else ""
    parameters = "".join(f" {keyword}={value}" for keyword, value in path.parameters.items())
    return f'<"{quoted}"{at}>{parameters}'


def _check_address(path: Path, allowed: bool) -> None:
    address = _stored(path, allowed)
    if address is None:
        return
    assert address.isprintable()
    assert len(address) <= MAX_ADDRESS_LENGTH
    assert domain_of(address).isascii()
    assert address.isascii() or allowed
    # The stored form is the form of itself: over the envelope, and over a header field.
    again = parse_path(f"<{address}>") if address.isascii() else Path(path.local, domain_of(address), {})
    assert again is not None
    assert normalise(again.local, again.domain, allow_utf8_local_part=allowed) == address
    # A header field is read with more doubts: apostrophes around an address, what needs quotes, encoded words.
    if address.isascii() and not set("\"'`{|") & set(address) and "=?" not in address:
        listed = mailbox.parse(address).mailboxes
        wanted = ((address,), 0) if "." in domain_of(address) else ((), 1)
        assert mailbox.addresses(listed, allow_utf8_local_parts=allowed) == wanted, listed


def _stored(path: Path, allowed: bool) -> str | None:
    try:
        return normalise(path.local, path.domain, allow_utf8_local_part=allowed)
    except BadAddress as error:
        if error.utf8_local_part and allowed:
            raise
        return None
