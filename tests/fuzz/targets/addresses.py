"""Address lists of header fields: read the same by every way, and what is stored is one address and no more."""

from __future__ import annotations

from collections.abc import Iterator

from relay.core.address import MAX_ADDRESS_LENGTH, BadAddress, domain_of
from relay.mail import mailbox
from relay.mail.mailbox import Mailbox

TOKENS = (
    b"<",
    b">",
    b"@",
    b", ",
    b"; ",
    b'"',
    b"\\",
    b"(",
    b")",
    b":",
    b"=?utf-8?q?",
    b"?=",
    b"=40",
    b"a@b.example",
    b"<c@d.example>",
    b"mailto:",
    b"\xc2\xa0",
    b"\xc2\xad",
    b"\xe3\x80\x82",
    b"undisclosed-recipients:;",
)
MAX_OCTETS = 512


def seeds() -> Iterator[bytes]:
    """Inputs to begin with."""
    yield from (
        b"a@b.example",
        b"A B <a@b.example>, c@d.example; e@f.example",
        b'"B, A" <a@b.example>, (x) c@d.example (y (z))',
        b"group: a@b.example, c@d.example;, e@f.example",
        b"<@x,@y:a@b.example>",
        b"=?utf-8?q?a=40b.example=2C?= <c@d.example>",
        b'"a b"@c.example, "a\\"b"@c.example',
        b"a <b@c.example> <d@e.example>",
        b"mailto:a@b.example",
        b"'a@b.example'",
        b"B, A <a@b.example>",
        "a@b.example。, c@d.example.\u00ad".encode(),
        "ä@bücher.example, Ü <a@ü.example>".encode(),
        b"\xe4\xa0 <a@b.example>\xa0,\xc2\xa0c@d.example",
        b"a@b.example (c@d.example), [e@f.example]",
        b'"a@b.example" <c@d.example>',
        b"a@b@c.example, @d.example, e@, f",
        b"undisclosed-recipients:;",
    )


def check(octets: bytes) -> None:
    """Raises AssertionError where the ways differ, or a stored address is not the address of itself."""
    # As a header's value is: unfolded.
    view = octets.decode("latin-1").replace("\n", " ").replace("\r", " ").strip(" \t")
    found = mailbox.parse(view)
    by_long_way = mailbox.parse(view, shortcuts=False)
    short, long = _stored(found.mailboxes), _stored(by_long_way.mailboxes)
    assert [address for _, address in short] == [address for _, address in long], (found, by_long_way)
    if all(map(_address, (*found.mailboxes, *by_long_way.mailboxes))):
        # Else what is no address for one of them may be part of the next one's name.
        assert short == long, (found, by_long_way)
    seen = mailbox.lookalikes(view)
    assert len(seen) <= 1000
    for each in (*found.mailboxes, *seen):
        _check_mailbox(each)


def _stored(mailboxes: list[Mailbox]) -> list[tuple[str, str]]:
    """Names, blanks apart, and addresses of those that can be sent to."""
    return [(" ".join(each.name.split()), address) for each in mailboxes if (address := _address(each))]


def _address(each: Mailbox) -> str | None:
    try:
        return mailbox.address_of(each, allow_utf8_local_parts=True)
    except BadAddress:
        return None


def _check_mailbox(each: Mailbox) -> None:
    address = _address(each)
    if address is None:
        return
    assert address.isprintable()
    assert len(address) <= MAX_ADDRESS_LENGTH
    if not address.isascii():
        return
    if address.startswith(('"', "'", "`", "{", "|")) or "=?" in address:
        # One address at most: white space in quotes, a further @, apostrophes, encoded words don't survive.
        assert len(mailbox.parse(address).mailboxes) <= 1
        return
    # A domain without a full stop receives no mail.
    wanted = ((address,), 0) if "." in domain_of(address) else ((), 1)
    assert mailbox.addresses(mailbox.parse(address).mailboxes, allow_utf8_local_parts=False) == wanted, each
    sender = mailbox.with_name(each.name, address)
    assert sender.isascii()
    assert sender.isprintable()
    assert len(sender) <= MAX_ADDRESS_LENGTH
    again = mailbox.parse(sender).mailboxes
    assert mailbox.addresses(again, allow_utf8_local_parts=False) == wanted, (each, sender)
