"""Why a service could not be reached, in words of our own.

A library's text can hold any part of a URL, a malformed one's password among them: libpq takes `pa@ss word@host` for
the host `ss word@host` and says that it can't be resolved. To take known parts out of such a text is guessing where
they begin. So no text of a library is printed: it is searched for what it is known to say, and that is said in other
words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import psycopg2
import psycopg2.errorcodes

from config import redaction

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

#: Names in a summary of `config.redaction` → what we say.
_REDIS: Final[Mapping[str, str]] = {
    "ClusterMode": "is a Redis Cluster, which is not supported: the relay's scripts need a single server",
    "SSLCertVerificationError": (
        "its TLS certificate can't be verified; if your platform uses self-signed ones, set"
        " SMTP_RELAY_REDIS_TLS_VERIFY=false"
    ),
    "SSLError": "TLS could not be established",
    "AuthenticationError|NoPermissionError|NOAUTH|WRONGPASS": "user or password is wrong",
    "BusyLoadingError|LOADING": "it is loading its data",
    "ECONNREFUSED": "the connection was refused",
    "gaierror": "its host name can't be resolved",
    "ENETUNREACH|EHOSTUNREACH": "there is no route to its address",
    "Timeout": "it did not answer in time",
    "ECONNRESET|EPIPE|ConnectionResetError": "the server closed the connection",
}

#: The same for calls by HTTP.
_CALLS: Final[Mapping[str, str]] = {
    "NoCredentials|CredentialRetrieval|PartialCredentials|ProfileNotFound": "no AWS credentials were found",
    "InvalidRegion|ValueError|InvalidEndpoint|InvalidURL": "there is no such region or endpoint",
    "SSLError": "TLS could not be established",
    "ECONNREFUSED": "the connection was refused",
    "gaierror": "its host name can't be resolved",
    "ENETUNREACH|EHOSTUNREACH": "there is no route to its address",
    "ECONNRESET|EPIPE|ConnectionResetError": "the server closed the connection",
    "Timeout": "it did not answer in time",
}


def postgres_cause(error: BaseException | None) -> str:
    """Why Postgres could not be asked. `error`: psycopg2's, or what a look-up or a time limit raised instead."""
    if error is None:
        return "it did not answer in time"
    sqlstate: object = getattr(error, "pgcode", None)
    if isinstance(sqlstate, str):
        return f"refused: {named_sqlstate(sqlstate)}"
    if isinstance(error, psycopg2.Error):
        text = str(error)
        for pattern, meaning in _POSTGRES.items():
            if re.search(pattern, text):
                return meaning
    return _known(_REDIS, redaction.summary(error))


def redis_cause(summary: str) -> str:
    """Why there is no connection to Redis. `summary`: of the error, by `config.redaction`."""
    return _known(_REDIS, summary)


def call_cause(summary: str) -> str:
    """Why a service could not be called over HTTP. `summary`: of the error, by `config.redaction`."""
    return _known(_CALLS, summary)


def named_sqlstate(sqlstate: str) -> str:
    """`42501 (insufficient privilege)`."""
    try:
        name = psycopg2.errorcodes.lookup(sqlstate)
    except KeyError:
        return sqlstate
    return f"{sqlstate} ({name.lower().replace('_', ' ')})"


def _known(meanings: Mapping[str, str], summary: str) -> str:
    for pattern, meaning in meanings.items():
        if re.search(pattern, summary):
            return meaning
    return summary
