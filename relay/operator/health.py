"""`opensend-relay health`: whether the process in this container serves, for the HEALTHCHECK of an image.

It runs twice a minute, so it reads the few variables that it needs by itself, and imports no library. A busy process is
healthy: it says so itself. The master's own reply, while no worker serves, is not enough.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from config.settings import Settings

#: Of the whole check, in seconds.
LIMIT: Final = 5.0
#: A header for connections that speak for no client (the PROXY protocol, section 2.1).
_PROXY_HEADER: Final = b"PROXY UNKNOWN\r\n"
#: Arguments of the container's first process, and what that is.
_PROCESSES: Final = {
    "serve": "relay",
    "worker": "worker",
    "web": "web",
    "relay": "relay",
    "relay.delivery": "worker",
    "relay.web": "web",
}
_FIELDS: Final = {field.name: field for field in dataclasses.fields(Settings)}


def main(process: str | None, first: Path = Path("/proc/1/cmdline")) -> int:
    """The exit status: 0 healthy, 1 not, with the reason on standard output, which container engines keep.

    `process`: relay, worker or web; None: what the command line in the file `first` says.
    """
    checks = {"relay": _smtp, "web": _http, "worker": _worker}
    name = process or _process_of(first)
    try:
        reason = checks[name]()
    except TimeoutError:
        reason = f"no answer within {LIMIT:g} s"
    except OSError as error:
        reason = f"no connection: {(error.strerror or 'the address is unknown').lower()}"
    except ValueError:
        reason = "a port or a network in the settings is wrong"
    print(f"{name}: {reason or 'serves'}")
    return 1 if reason else 0


def _process_of(command_line: Path) -> str:
    """What a container's first process is: its first argument that says so; the relay where none does."""
    try:
        arguments = command_line.read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "relay"
    return next((_PROCESSES[each] for each in arguments if each in _PROCESSES), "relay")


def _smtp() -> str:
    """What is wrong; nothing where a worker greets. RFC 5321 section 4.3.1."""
    with _connect(int(_setting("port"))) as connection:
        if _speaks_for_clients("proxy_protocol"):
            connection.sendall(_PROXY_HEADER)
        with connection.makefile("rb") as reader:
            greeting = reader.readline(512)
        connection.sendall(b"QUIT\r\n")
    busy = greeting.startswith(b"421 ") and b"Too many" in greeting
    return "" if greeting.startswith(b"220 ") or busy else "no worker serves"


def _http() -> str:
    """The same for HTTP: any answer that is one (RFC 9112 section 4) will do."""
    with _connect(int(_setting("http_port"))) as connection:
        if _speaks_for_clients("http_proxy_protocol"):
            connection.sendall(_PROXY_HEADER)
        if _setting("http_tls").lower() in ("true", "1"):
            import ssl  # noqa: PLC0415 - seldom

            # Whose certificate it is does not matter on this machine.
            context = ssl._create_unverified_context()  # noqa: S323 - see above
            connection = context.wrap_socket(connection)  # noqa: PLW2901 - closes the one that it takes over
        connection.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with connection.makefile("rb") as reader:
            status = reader.readline(512)
    return "" if status.startswith(b"HTTP/1.1 ") else "no worker serves"


def _worker() -> str:
    """The delivery worker listens nowhere but for its metrics. Its master ends where no process keeps running."""
    port = _setting("delivery_metrics_port")
    if port:
        _connect(int(port), host="127.0.0.1").close()
    return ""


def _setting(name: str) -> str:
    """The first of a setting's variables that is set, else its default; empty for None."""
    field = _FIELDS[name]
    variables: Sequence[str] = field.metadata["source"].variables
    default = "" if field.default is None else str(field.default)
    return next(filter(None, (os.environ.get(variable, "").strip() for variable in variables)), default)


def _connect(port: int, host: str | None = None) -> socket.socket:
    """Raises OSError, and ValueError for a port that is none."""
    if not 0 < port < 65536:
        raise ValueError
    listens_on = (host or _setting("host")).strip("[]")
    anywhere = {"0.0.0.0": ("127.0.0.1",), "::": ("::1", "127.0.0.1")}  # noqa: S104 - compared, nothing is bound
    *others, last = anywhere.get(listens_on, (listens_on,))
    for each in others:
        try:
            return socket.create_connection((each, port), timeout=LIMIT)
        except OSError:
            continue
    return socket.create_connection((last, port), timeout=LIMIT)


def _speaks_for_clients(name: str) -> bool:
    """Whether this machine counts as a proxy, so that a PROXY header has to come first."""
    networks = filter(None, map(str.strip, _setting(name).split(",")))
    return any(ipaddress.ip_address("127.0.0.1") in ipaddress.ip_network(network) for network in networks)
