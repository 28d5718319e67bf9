"""A client that says what it is told to, octet for octet."""

from __future__ import annotations

import socket

from tests.support.relay_process import Relay, plain

#: Seconds until a client gives up on an answer.
PATIENCE = 20.0


class Client:
    """A client at one address, who reads line by line."""

    def __init__(
        self, relay: Relay, address: str = "127.0.0.1", *, first: bytes = b"", port: int | None = None
    ) -> None:
        self.socket = socket.create_connection((relay.host, port or relay.port), PATIENCE, source_address=(address, 0))
        if first:
            self.socket.sendall(first)
        self._unread = b""

    def line(self) -> str:
        """The next line that we are told; empty when the relay has closed."""
        while b"\n" not in self._unread:
            try:
                octets = self.socket.recv(4096)
            except ConnectionResetError:
                octets = b""
            if not octets:
                return ""
            self._unread += octets
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode().rstrip()

    def reply(self) -> str:
        """The last line of the next reply."""
        while (line := self.line())[3:4] == "-":
            pass
        return line

    def say(self, *lines: str) -> str:
        """The last of the replies."""
        self.socket.sendall("".join(f"{line}\r\n" for line in lines).encode())
        return [self.reply() for _ in lines][-1]

    def auth(self, token: str) -> str:
        """EHLO and AUTH."""
        return self.say("EHLO client.example", f"AUTH PLAIN {plain(token)}")

    def close(self) -> None:
        self.socket.close()
