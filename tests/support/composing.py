"""Mails composed from rows that hold all of their contents."""

from __future__ import annotations

from relay.delivery import compose as composing
from relay.delivery.compose import Composed
from relay.delivery.row import OutgoingEmail


def compose(email: OutgoingEmail) -> Composed:
    """The mail of a row as it leaves without tracking. Raises Unsendable."""
    return composing.compose(email, composing.bodies_of(email))
