"""Takes webhooks over HTTPS, as a program: python -m scripts.services.webhook_sink_double HOST PORT FOLDER.

What it does is in the path: /ok, /ms/<milliseconds> (200 after so long), /status/<code>, /redirect, /hang (no answer),
/close (closes without one), /short (closes in the middle of the content), /drip (an octet now and then), /endless
(content without end), /continue (interim responses without end), /early (interim responses, then 200), /field (a header
field without end), /large (5,000 characters of two octets). It keeps each request as a line of FOLDER/requests.jsonl.
"""

if not __package__:
    raise SystemExit("Run ./scripts/launch services.webhook_sink_double instead.")

from gevent import monkey

monkey.patch_all()

# Nothing else may be imported before the standard library is patched.

import json
import os
import ssl
import sys
from pathlib import Path
from typing import Final

import gevent
import gevent.socket
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from gevent.server import StreamServer

from scripts.certificate import certificate_pem, key_pem, self_signed

_NAMES: Final = ("*.example.com", "example.com")


def main(arguments: list[str]) -> None:
    """Serves until it is killed."""
    host, port, folder = arguments
    directory = Path(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*_certificate(directory))
    names: dict[int, str] = {}
    context.sni_callback = lambda sock, name, _: names.__setitem__(id(sock), name or "")
    output = os.open(directory / "requests.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def take(plain: gevent.socket.socket, _address: object) -> None:
        try:
            with gevent.Timeout(30.0), context.wrap_socket(plain, server_side=True) as sock:
                _serve(sock, output, names.pop(id(sock), ""))
        except (OSError, gevent.Timeout):
            return

    StreamServer((host, int(port)), take, backlog=1024).serve_forever()


def _serve(sock: ssl.SSLSocket, output: int, server_name: str) -> None:
    octets = b""
    while b"\r\n\r\n" not in octets:
        piece = sock.recv(65536)
        if not piece:
            return
        octets += piece
    head, _, body = octets.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    path = first.split(" ")[1]
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(fields.get("content-length", "0")):
        body += sock.recv(65536)
    kept = {"path": path, "fields": fields, "body": body.decode("utf-8", "replace"), "server_name": server_name}
    os.write(output, json.dumps(kept).encode() + b"\n")
    _answer(sock, path.partition("?")[0])


def _answer(sock: ssl.SSLSocket, path: str) -> None:
    action, _, number = path.strip("/").partition("/")
    if action == "ms":
        gevent.sleep(int(number) / 1000)
    if action in {"ok", "ms"}:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    elif action == "status":
        sock.sendall(b"HTTP/1.1 %s Said\r\nContent-Length: 6\r\n\r\nanswer" % number.encode())
    elif action == "redirect":
        sock.sendall(b"HTTP/1.1 302 Found\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n")
    elif action == "hang":
        gevent.sleep(30.0)
    elif action == "short":
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok")
    elif action == "large":
        content = "ä".encode() * 5000
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
    elif action == "early":
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    elif action == "drip":
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        _for_ever(sock, b"x", 0.3)
    elif action == "endless":
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        _for_ever(sock, b"x" * 16384, 0.0)
    elif action == "continue":
        _for_ever(sock, b"HTTP/1.1 100 Continue\r\n\r\n" * 500, 0.0)
    elif action == "field":
        sock.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        _for_ever(sock, b"x" * 16384, 0.0)


def _for_ever(sock: ssl.SSLSocket, octets: bytes, seconds: float) -> None:
    while True:
        sock.sendall(octets)
        gevent.sleep(seconds)


def _certificate(directory: Path) -> tuple[str, str]:
    """Paths of a new certificate, which is its own authority, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName(each) for each in _NAMES]
    pem, key_path = directory / "sink.pem", directory / "sink.key"
    pem.write_bytes(certificate_pem(self_signed(key, "example.com", names, days=30)))
    key_path.write_bytes(key_pem(key))
    return str(pem), str(key_path)


if __name__ == "__main__":
    main(sys.argv[1:])
