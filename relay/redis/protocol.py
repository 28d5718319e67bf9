"""Commands to Redis and their replies on one connection (the protocol RESP2), as hiredis reads and writes them.

redis-py makes the connection: names, TLS, passwords, errors. Its way of sending a command and reading a
reply takes four times the CPU of what hiredis does in it, on the path of every mail.
"""

from __future__ import annotations

import re
import socket
import time
from typing import Any, Final, TypeAlias

import hiredis

Argument = bytes | str | int | float
Command = tuple[Argument, ...]
#: Octets, a number, None, or a list of those; or an ErrorReply. Only the command says which.
RedisReply: TypeAlias = Any

_RECEIVE_SIZE: Final = 65536
_MORE: Final = object()


#: What servers say of a command within a script, behind the code ERR → the code that they have for the same outside.
_IN_SCRIPTS: Final = {
    "ACL failure in script": "NOPERM",
    "keys that do not hash to the same slot": "CROSSSLOT",
    "access a non local key in a cluster": "CROSSSLOT",
}
_NAMED_COMMAND: Final = re.compile(r"run the '([a-z|]{1,40})' command")


class ErrorReply(Exception):
    """Redis answered with an error. `code` is its first word, or what that stands for; the rest may hold anything."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        code = text.split(" ", 1)[0][:40]
        if code == "ERR":
            code = next((meant for said, meant in _IN_SCRIPTS.items() if said in text), code)
        self.code = code
        named = _NAMED_COMMAND.search(text)
        #: The command that was not permitted, where the server says which, in upper case; else nothing.
        self.command = named[1].upper() if named else ""


class RespConnection:
    """The two directions of a connection. Both raise OSError when it is broken, or too slow."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock`: a connected socket with a time limit, in the clear or under TLS."""
        self._socket = sock
        self._reader = hiredis.Reader(replyError=ErrorReply, notEnoughData=_MORE)
        #: The moment of time.monotonic() after which the rest of the replies is not waited for.
        self._deadline = 0.0
        self._answering = False

    def send(self, packed: bytes, seconds: float) -> None:
        """Sends commands (from `pack`). All replies to them are due within so many seconds."""
        self._deadline = time.monotonic() + seconds
        self._answering = False
        # Most go out at once: gevent's sendall asks for the size of the send buffer first.
        sent = self._socket.send(packed)
        if sent < len(packed):
            self._socket.sendall(memoryview(packed)[sent:])

    def receive(self) -> RedisReply:
        """The next reply. An ErrorReply is returned, not raised."""
        while (reply := self._reader.gets()) is _MORE:
            # The socket's own limit starts anew with each piece, however small. The first may be late for reasons that
            # are ours, and is bounded by that limit alone.
            if self._answering and time.monotonic() > self._deadline:
                raise TimeoutError("replies come too slowly")
            octets = self._socket.recv(_RECEIVE_SIZE)
            self._answering = True
            if not octets:
                raise ConnectionResetError("the server closed the connection")
            self._reader.feed(octets)
        return reply


def pack(command: Command) -> bytes:
    """The command as octets for the wire."""
    # Its types say that a command has one word.
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed
