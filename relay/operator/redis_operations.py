"""How `--check` tries Redis: each operation of a program, done once over a link as the program has it.

A right that is missing, or a command that the server hasn't, shows in the operation that needs it and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from relay.core.errors import RedisUnavailable
from relay.operator.finding import FAIL, OK, WARN, Finding
from relay.operator.outbox import RedisFailed
from relay.redis.causes import redis_cause
from relay.redis.link import RedisLink

#: Error codes that don't pass by themselves: what they forbid is forbidden tomorrow.
_LASTING: Final = ("NOPERM", "CROSSSLOT", "ERR", "MOVED")
#: The same of a connection that does not come about, in the words of `config.redaction`.
_REFUSED: Final = re.compile(r"ClusterMode|AuthenticationError|NoPermissionError|NOAUTH|WRONGPASS")


class Operation(NamedTuple):
    """Something that a program does with Redis."""

    name: str
    #: What is lost without it.
    loss: str
    #: Does it; whether the answers were those that should come. Raises RedisUnavailable and RedisFailed.
    works: Callable[[], bool]


def findings(link: RedisLink, operations: Sequence[Operation], *, away: str) -> Iterator[Finding]:
    """What is wrong, a line for each operation; or one that says that nothing is. Does not raise for Redis's sake.

    `away`: what else is to be said where there is no connection, or empty.

    A server that is away is a warning, since mail flows without it. One that is there, and will not do what is asked of
    it, is a failure: it is not the one that is meant, or not as it should be.
    """
    answered = _answers(link)
    if not answered and not link.up:
        yield _no_connection(link, away)
        return
    found = []
    for operation in operations:
        link.error_replies.clear()
        works = _try(link, operation)
        if not answered and not link.up:
            # The connection was still being made when it was first asked for.
            yield _no_connection(link, away)
            return
        errors = sorted(link.error_replies)
        if any(code == "CROSSSLOT" for code, _ in errors):
            yield Finding(FAIL, "redis", redis_cause("ClusterMode"))
            return
        if works and not errors:
            continue
        said = ", ".join(f"{code} for {command}" for code, command in errors)
        level = FAIL if any(code in _LASTING for code, _ in errors) else WARN
        text = f"{operation.name}: {said or _silence(link)}; {operation.loss}"
        found.append(Finding(level, "redis", text))
        if not link.up:
            break  # the others would say the same
    yield from found
    if not found:
        yield Finding(OK, "redis", "answers, reads and writes")


def _no_connection(link: RedisLink, away: str) -> Finding:
    failure = link.failure or "Timeout"
    level = FAIL if _REFUSED.search(failure) else WARN
    return Finding(level, "redis", "; ".join(filter(None, (redis_cause(failure), away))))


def _answers(link: RedisLink) -> bool:
    try:
        return bool(link.call("PING"))
    except RedisUnavailable:
        return False


def _try(link: RedisLink, operation: Operation) -> bool:
    try:
        works = operation.works()
    except (RedisUnavailable, RedisFailed):
        works = False
    errors = set(link.error_replies)
    _answers(link)  # what was posted has been carried out when this is answered, or refused
    if ("NOPERM", "PING") not in errors:
        link.error_replies.discard(("NOPERM", "PING"))
    return works


def _silence(link: RedisLink) -> str:
    return redis_cause(link.failure) if link.failure else "does not give back what was written"
