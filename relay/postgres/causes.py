"""Why Postgres could not be asked, in words: see `relay.core.causes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import psycopg2
import psycopg2.errorcodes

from config import redaction
from relay.core.causes import first_meaning, in_words

#: What libpq and servers say → what we say. The first that matches.
_POSTGRES: Final[Mapping[str, str]] = {
    "password authentication failed": "user or password is wrong (password authentication failed)",
    "no password supplied": "the server requires a password, and DATABASE_URL has none",
    "no pg_hba.conf entry": "no line of pg_hba.conf allows this user, database, address and encryption",
    'database ".*" does not exist': "there is no such database",
    'role ".*" does not exist': "there is no such role",
    "is not permitted to log in": "the role may not log in",
    "permission denied for database": "the role may not connect to this database",
    "too many connections|remaining connection slots|too many clients": "the server has no connection left",
    "is starting up|is shutting down|in recovery mode|not yet accepting": "the server is starting, or shutting down",
    "Connection refused": "the connection was refused",
    "could not translate host name|Name or service not known|name resolution": "its host name can't be resolved",
    "No route to host|Network is unreachable": "there is no route to its address",
    "timeout expired|timed out": "it did not answer in time",
    "No such file or directory": "there is no socket or certificate file of that name",
    "does not support SSL": "the server does not speak TLS, which sslmode asks for",
    "certificate verify failed|does not match host name": "its TLS certificate can't be verified",
    "SSL": "TLS could not be established",
    "closed the connection unexpectedly|Connection reset": "the server closed the connection",
    "invalid (integer|port|connection option|sslmode|channel_binding|.*value)": "DATABASE_URL has a wrong parameter",
}

#: The same of an error of libpq whose text is not known here.
_OTHERS: Final[Mapping[str, str]] = {
    "psycopg2": "the connection failed in a way that is not known here; see Postgres's log"
}


def postgres_cause(error: BaseException | None) -> str:
    """Why Postgres could not be asked. `error`: psycopg2's, or what a look-up or a time limit raised instead."""
    if error is None:
        return "it did not answer in time"
    sqlstate: object = getattr(error, "pgcode", None)
    if isinstance(sqlstate, str):
        return f"refused: {named_sqlstate(sqlstate)}"
    if isinstance(error, psycopg2.Error):
        known = first_meaning(str(error), _POSTGRES)
        if known:
            return known
    return in_words(redaction.summary(error), {}, _OTHERS)


def named_sqlstate(sqlstate: str) -> str:
    """`42501 (insufficient privilege)`."""
    try:
        name = psycopg2.errorcodes.lookup(sqlstate)
    except KeyError:
        return sqlstate
    return f"{sqlstate} ({name.lower().replace('_', ' ')})"
