"""What a limit counts by: the client's IPv4 address or its IPv6 network, as a keyed hash that does not reveal it."""

from __future__ import annotations

import socket
from hashlib import blake2b
from typing import Final

_DIGEST_OCTETS: Final = 8
_MAPPED: Final = bytes(10) + b"\xff\xff"
#: Providers assign no less than this to one customer, so a client can use any address in it: RFC 6177.
_IPV6_NETWORK_OCTETS: Final = 8


class Origins:
    """Makes origins; without `secret` the address could be found by trying all.

    All processes that share limits have to have the same secret.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = blake2b(secret, digest_size=32, person=b"origins").digest()

    def of(self, address: str) -> bytes:
        """The origin of an IPv4 or IPv6 address. IPv6 counts by /64, and IPv4 within IPv6 is IPv4."""
        return self.digest(_network(address))

    def digest(self, octets: bytes) -> bytes:
        """A keyed hash of 8 octets."""
        return blake2b(octets, digest_size=_DIGEST_OCTETS, key=self._secret).digest()


def _network(address: str) -> bytes:
    try:
        if ":" not in address:
            return socket.inet_pton(socket.AF_INET, address)
        # The zone of a link-local address is not part of what is sent over the wire.
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address.encode("utf-8", "surrogateescape")
    return packed[12:] if packed.startswith(_MAPPED) else packed[:_IPV6_NETWORK_OCTETS]
