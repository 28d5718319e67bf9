"""The mail that leaves: composed with tracked links, and with less where it would be too large with all of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, zip_longest

from relay.core.provider_limits import MAX_COMPOSED_OCTETS
from relay.delivery.compose import Composed, Unsendable, compose
from relay.delivery.content import Content, Spool, octets_of, woven
from relay.delivery.parts import Bodies
from relay.delivery.row import OutgoingEmail
from relay.delivery.tracking import Spliced, Tracking
from relay.postgres.sending_facts import SendingDomain


def leaving(
    email: OutgoingEmail,
    bodies: Bodies,
    tracking: Tracking | None,
    domain: SendingDomain | None,
    *,
    spool: Spool | None = None,
) -> Composed:
    """The mail of a row as it leaves. `spool`: where the octets go; None: into memory. Raises Unsendable and NoRoom.

    What the relay adds, tracked links and the second copy of an invitation, was not there when the row was accepted: a
    mail that would be too large by that leaves without it.
    """
    html = _tracked(email, bodies, tracking, domain, spool=spool)
    try:
        return compose(email, bodies, html=html, spool=spool)
    except Unsendable as unsendable:
        if unsendable.code != "MessageTooLarge":
            raise
    if spool is not None:
        spool.cut(0)
    return compose(email, bodies, spool=spool, invitation=False)


def _tracked(
    email: OutgoingEmail,
    bodies: Bodies,
    tracking: Tracking | None,
    domain: SendingDomain | None,
    *,
    spool: Spool | None,
) -> Content | None:
    """The HTML with tracked links; None where nothing is tracked, and where it would be too large."""
    if tracking is None or domain is None or not bodies.html.size:
        return None
    pieces = tracking.rewrite(email, domain, octets_of(bodies.html))
    if pieces is None:
        return None
    if spool is None:
        return woven(pieces)
    return _spooled(pieces, spool)


def _spooled(pieces: Iterator[Spliced], spool: Spool) -> Content | None:
    start = spool.size
    for texts, before, tokens in pieces:
        spool.write(b"".join(chain.from_iterable(zip_longest(texts, map(before.__add__, tokens), fillvalue=b""))))
        if spool.size - start > MAX_COMPOSED_OCTETS:
            spool.cut(start)
            return None
    return spool.since(start)
