"""Commands to Redis by the hundred: in their order, and loud when one of them fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from relay.core.errors import RedisUnavailable
from relay.redis.link import RedisLink, Script
from relay.redis.protocol import Command, ErrorReply

#: What goes out in one packet at most: commands and octets.
_BATCH_COMMANDS: Final = 500
_BATCH_BYTES: Final = 500_000


class RedisFailed(Exception):
    """Redis went away, or refused a command. The text is an error code of Redis's, or the name of what went wrong."""


class Outbox:
    """Commands on their way to Redis, many at a time."""

    def __init__(self, link: RedisLink, *, discard: bool = False) -> None:
        """`discard`: nothing is sent."""
        self._link = link
        self._discard = discard
        self._commands: list[Command] = []
        self._then: list[Callable[[object], None] | None] = []
        self._size = 0

    def load(self, scripts: Iterable[Script]) -> None:
        """Makes the server know scripts. Raises RedisFailed."""
        for script in scripts:
            self.put(script.load())
        self.settle()

    def put(self, command: Command, then: Callable[[object], None] | None = None) -> None:
        """`then` gets the reply. Raises RedisFailed, also for a command that was put earlier."""
        if self._discard:
            return
        self._commands.append(command)
        self._then.append(then)
        self._size += sum(len(part) for part in command if isinstance(part, bytes | str))
        if len(self._commands) >= _BATCH_COMMANDS or self._size >= _BATCH_BYTES:
            self._send()

    def settle(self) -> None:
        """Returns when all that was put has been carried out. Raises RedisFailed."""
        while self._commands:
            self._send()

    def _send(self) -> None:
        commands, self._commands = self._commands, []
        then, self._then = self._then, []
        self._size = 0
        try:
            replies = self._link.call_all(commands)
        except RedisUnavailable as silent:
            raise RedisFailed(silent.code) from None
        for reply in replies:
            if isinstance(reply, ErrorReply):
                raise RedisFailed(f"{reply.code} {reply.command}".strip())
        for reply, act in zip(replies, then, strict=True):
            if act is not None:
                act(reply)
