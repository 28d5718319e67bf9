"""The proxies that are trusted to name their clients (`SMTP_RELAY_PROXY_PROTOCOL`)."""

from __future__ import annotations

import ipaddress
from typing import Final

import gevent.socket
from gevent import Timeout

from relay.smtp import proxy_protocol
from relay.smtp.proxy_protocol import NotProxied

#: For the whole header: a proxy sends it at once, before anything that its client says.
HEADER_SECONDS: Final = 5.0


class Proxies:
    """Trusted networks, and what comes from them first."""

    #: Seconds that a header may take.
    header_seconds = HEADER_SECONDS

    def __init__(self, networks: str | None) -> None:
        """`networks`: as the setting has it. Raises ValueError."""
        self._networks = [ipaddress.ip_network(network.strip()) for network in (networks or "").split(",") if network]

    def trust(self, peer: str) -> bool:
        """Whether a connection from this address begins with a header."""
        if not self._networks:
            return False
        address = ipaddress.ip_address(peer)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)

    def client_of(self, sock: gevent.socket.socket) -> str | None:
        """Reads the header: the client's address, or None where the connection is the proxy's own.

        `sock` is gevent's. Nothing behind the header is read. Raises NotProxied.
        """
        sock.settimeout(None)
        try:
            with Timeout(self.header_seconds, NotProxied("too late")):
                return proxy_protocol.read(sock.recv).client
        except OSError as error:
            raise NotProxied("cut off") from error
