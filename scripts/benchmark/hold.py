"""The client that opens connections, authenticates, and does nothing more. A separate process:

    python -m scripts.benchmark.hold PORT COUNT plain|tls < API-KEY

prints a line once all are open, and keeps them until its standard input ends.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.hold instead.")

import contextlib
import resource
import smtplib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def idle_connections(port: int, token: str, count: int, *, tls: bool) -> Iterator[None]:
    """While the context lasts, so many authenticated connections are open."""
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.benchmark.hold", str(port), str(count), "tls" if tls else "plain"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent.parent,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(token + "\n")
        holder.stdin.flush()
        if not holder.stdout.readline():
            raise RuntimeError("the connections could not be opened")
        yield
        holder.stdin.close()


def descriptors() -> int:
    """How many files this process and its children may have open: as many as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def main(port: int, count: int, mode: str) -> None:
    """See above."""
    descriptors()
    token = sys.stdin.readline().strip()
    # The certificate is the bench's own.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    clients = []
    for _ in range(count):
        client = smtplib.SMTP("127.0.0.1", port, local_hostname="client.example", timeout=60)
        if mode == "tls":
            client.starttls(context=context)
        client.login("benchmark", token)
        clients.append(client)
    print("open", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
