r"""Dialogue scripts: SMTP conversations as plain text, and the player that has them with a real server.

A file holds scenes, each a separate connection:

    == Title
    server: open             where to connect (see `TRANSPORTS`); several names: the scene is played on each
    start: authenticated     what went before (see `PRELUDES`); the script goes on from there

    C: MAIL FROM:<a@b.example>      a line that the client sends, CRLF added
    S: 250 2.1.0 Ok                 a line that the server must answer with; … stands for any text
    R: body\n.\r\n                  octets that the client sends as they are, with Python's escapes
    > half-close                    something else that the client does or expects (see `Player._do`)
    S: <closed>                     the server closes, properly and without a further octet
    M: a@b.c, d@e.f | body\r\n      a message was accepted: recipients, and the exact octets (or … for any)

Lines that the client sends one below the other leave in one packet. `{x*500}` in what is sent repeats `x`, escapes
included; `␣` is a blank where an editor would strip it; `#` begins a comment. Settings above the first scene hold for
all of the file. A scene that the server does not end, ends with QUIT. A message that is accepted and that no `M:`
expects, or a line that the server sends and no `S:` expects, fails the scene.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.dialogue_stage import Accepted, Stage

#: name → server of the stage, how to connect
TRANSPORTS = {
    "open": ("open", "clear"),
    "hurried": ("hurried", "clear"),
    "hurried-clear": ("certified-hurried", "clear"),
    "hurried-implicit": ("certified-hurried", "implicit"),
    "full": ("full", "clear"),
    "scarce": ("scarce", "clear"),
    "clear": ("certified", "clear"),
    "starttls": ("certified", "starttls"),
    "implicit": ("certified", "implicit"),
}

_HELLO = """\
S: 220 relay.test ESMTP …
C: EHLO client.example
S: 250-relay.test
S: 250-SIZE …
S: 250-8BITMIME
S: 250-PIPELINING
S: 250-ENHANCEDSTATUSCODES
S: 250-SMTPUTF8
S: 250-CHUNKING
S: 250-LIMITS …
S: 250 …
"""
#: base64("\0any\0good")
_LOGIN = """\
C: AUTH PLAIN AGFueQBnb29k
S: 235 2.7.0 Authentication succeeded
"""
_ENVELOPE = """\
C: MAIL FROM:<sender@example.com>
C: RCPT TO:<rcpt@example.net>
S: 250 2.1.0 Ok
S: 250 2.1.5 Ok
"""
_GOODBYE = """\
C: QUIT
S: 221 2.0.0 Bye
S: <closed>
"""
PRELUDES = {
    "connected": "",
    "greeted": _HELLO,
    "authenticated": _HELLO + _LOGIN,
    "enveloped": _HELLO + _LOGIN + _ENVELOPE,
    "sending": _HELLO + _LOGIN + _ENVELOPE + "C: DATA\nS: 354 …\n",
}

_REPEATED = re.compile(r"\{(.+?)\*(\d+)\}")


@dataclass(frozen=True)
class Step:
    """One line of a scene."""

    kind: str
    text: str
    line: int


@dataclass
class Scene:
    """One connection of a script."""

    title: str
    transports: list[str] = field(default_factory=lambda: ["open"])
    start: str = "connected"
    steps: list[Step] = field(default_factory=list)


def parse(path: Path) -> list[Scene]:
    """The scenes of a file. Raises ValueError with the line that makes no sense."""
    return parse_text(path.read_text(encoding="utf-8"), path.name)


def parse_text(text: str, name: str = "script") -> list[Scene]:
    """The same, of a text."""
    scenes: list[Scene] = []
    defaults = Scene("")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        scene = scenes[-1] if scenes else defaults
        if line.startswith("== "):
            scenes.append(Scene(line[3:].strip(), list(defaults.transports), defaults.start))
        elif line.startswith("server:"):
            scene.transports = line.removeprefix("server:").replace(",", " ").split()
            if unknown := set(scene.transports) - TRANSPORTS.keys():
                raise ValueError(f"{name}:{number}: unknown server {unknown}")
        elif line.startswith("start:"):
            scene.start = line.removeprefix("start:").strip()
            if scene.start not in PRELUDES:
                raise ValueError(f"{name}:{number}: unknown start")
        elif scenes and line[:2] in ("C:", "S:", "R:", "M:", "> "):
            scene.steps.append(Step(line[0], line[2:].removeprefix(" ").replace("␣", " "), number))
        else:
            raise ValueError(f"{name}:{number}: {line!r} is no step")
    return scenes


def _expand(text: str, *, escapes: bool) -> bytes:
    def octets(piece: str) -> bytes:
        if not escapes:
            return piece.encode("utf-8")
        return piece.encode("latin-1", "backslashreplace").decode("unicode_escape").encode("latin-1")

    parts = _REPEATED.split(text)
    made = [octets(parts[0])]
    for piece, count, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        made += [octets(piece) * int(count), octets(rest)]
    return b"".join(made)


class Mismatch(AssertionError):
    """The server did something else than the script says."""


class Player:
    """Has one scene with a server of a stage."""

    def __init__(self, stage: Stage, scene: Scene, transport: str) -> None:
        self._stage = stage
        self._scene = scene
        self._server, self._way = TRANSPORTS[transport]
        self._socket: socket.socket | ssl.SSLSocket
        self._buffer = b""
        self._log: list[str] = []
        self._ended = False

    def play(self) -> None:
        """Raises Mismatch where the server departs from the script; messages are left to `check_messages`."""
        self._socket = self._stage.connect(self._server, implicit_tls=self._way == "implicit")
        try:
            if self._way == "starttls":
                self._steps(_lines(_HELLO))
                self._encrypt()
                prelude = PRELUDES[self._scene.start].partition("\n")[2]
            else:
                prelude = PRELUDES[self._scene.start]
            self._steps(_lines(prelude))
            self._steps(self._scene.steps)
            if not self._ended:
                self._steps(_lines(_GOODBYE))
        finally:
            self._socket.close()

    def expected_messages(self) -> list[str]:
        """What the scene says that was accepted."""
        return [step.text for step in self._scene.steps if step.kind == "M"]

    def _steps(self, steps: list[Step]) -> None:
        packet = b""
        for number, step in enumerate(steps):
            if step.kind in "CR":
                packet += _expand(step.text, escapes=step.kind == "R") + (b"\r\n" if step.kind == "C" else b"")
                if number + 1 == len(steps) or steps[number + 1].kind not in "CR":
                    self._send(packet)
                    packet = b""
            elif step.kind == "S":
                self._expect(step)
            elif step.kind == ">":
                self._do(step)

    def _send(self, octets: bytes) -> None:
        self._log.append(f"C: {octets[:200]!r}{'…' if len(octets) > 200 else ''}")
        self._socket.sendall(octets)

    def _do(self, step: Step) -> None:
        self._log.append(f"> {step.text}")
        verb, _, argument = step.text.partition(" ")
        if verb == "starttls":
            self._encrypt()
        elif verb == "half-close":
            # Of a TLS connection only the transport's half: there is no client that sends close_notify and reads on.
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
        elif verb == "wait":
            time.sleep(float(argument))
        elif verb == "expect":
            count, _, pattern = argument.partition(" ")
            for _ in range(int(count)):
                self._expect(Step("S", pattern, step.line))
        else:
            raise ValueError(f"line {step.line}: unknown action")

    def _encrypt(self) -> None:
        if self._way == "starttls":
            self._send(b"STARTTLS\r\n")
            self._expect(Step("S", "220 2.0.0 Ready to start TLS", 0))
        self._socket = self._stage.encrypt(self._socket)

    def _expect(self, step: Step) -> None:
        got = self._read_line()
        self._ended = got.startswith("<")
        self._log.append(f"S: {got}")
        if step.text == "<closed or reset>":
            pattern = "<closed>|<reset>"
        else:
            pattern = ".*".join(re.escape(piece) for piece in step.text.split("…"))
        if not re.fullmatch(pattern, got):
            raise Mismatch(f"line {step.line}: expected {step.text!r}\n" + "\n".join(self._log))

    def _read_line(self) -> str:
        while b"\n" not in self._buffer:
            try:
                octets = self._socket.recv(65536)
            except TimeoutError:
                return "<silence>"
            except ConnectionResetError:
                return "<reset>"
            except ssl.SSLEOFError:
                return "<closed without close_notify>"
            if not octets:
                return "<closed>" if not self._buffer else f"<closed after {self._buffer!r}>"
            self._buffer += octets
        line, _, self._buffer = self._buffer.partition(b"\n")
        if not line.endswith(b"\r"):
            return f"<bare line feed after {line!r}>"
        return line[:-1].decode("ascii")


def check_messages(stage: Stage, expected: list[str]) -> None:
    """Whether exactly these messages were accepted since the last look, in any order. Raises Mismatch."""
    accepted = stage.newly_accepted()
    left = list(accepted)
    for message in expected:
        match = next((candidate for candidate in left if _is_message(candidate, message)), None)
        if match is None:
            raise Mismatch(f"expected messages {expected}, accepted {accepted}")
        left.remove(match)
    if left:
        raise Mismatch(f"expected messages {expected}, accepted {accepted}")


def _is_message(accepted: Accepted, expected: str) -> bool:
    recipients, _, body = expected.partition("|")
    body = body.removeprefix(" ")
    if recipients.strip().split(", ") != accepted.recipients:
        return False
    if body == "…":
        return True
    octets = _expand(body, escapes=True)
    return accepted.size == len(octets) and accepted.body == octets[: len(accepted.body)]


def _lines(text: str) -> list[Step]:
    return [Step(line[0], line[3:], 0) for line in text.splitlines()]
