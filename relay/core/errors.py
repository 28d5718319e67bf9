"""Errors that pass between packages: a service of ours is not available now, and may be later."""

from __future__ import annotations

from typing import ClassVar


class Unavailable(Exception):
    """A service that we depend on did not answer. The client always gets 4xx, never the text of the cause.

    `service` names it for the log. `code` is the word that the service or its library has for the cause, or nothing.
    `unclear`: the work may have been done all the same: a commit whose answer got lost.
    """

    service: ClassVar[str] = "service"

    def __init__(self, code: str = "", *, unclear: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.unclear = unclear


class PostgresUnavailable(Unavailable):
    """Postgres did not answer in time, or has no connection for us."""

    service = "postgres"


class PostgresRefused(PostgresUnavailable):
    """Postgres refused a statement for what is in it: a trigger, a constraint, a right. To repeat it would
    not help.
    """


class PostgresLocked(PostgresUnavailable):
    """Another open transaction holds a row for longer than it was waited for. Postgres answers others."""


class RedisUnavailable(Unavailable):
    """Redis did not answer, or only with an error. What the caller wanted to know stays unknown."""

    service = "redis"


class QueueUnavailable(Unavailable):
    """The queue took nothing, as far as one can know. `code`: AWS's own, or the name of what went wrong."""

    service = "sqs"


class TooLate(Exception):
    """The moment at which a mail was to leave has passed. Nothing of it has been sent.

    `seconds`: after them it may be tried again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Unstorable(Exception):
    """The database can't hold what a message contains, now or later: the message is refused for good.

    `sqlstate` is Postgres's code for the reason.
    """

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate
