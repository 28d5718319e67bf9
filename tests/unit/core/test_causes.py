"""Whatever error a library can raise where a service is away, what is said of it are words, and nothing of its text."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator

import botocore.exceptions
import psycopg2
import pytest
import redis.exceptions

from config import redaction
from relay.aws.causes import call_cause
from relay.core.causes import in_words
from relay.postgres.causes import postgres_cause
from relay.redis.causes import redis_cause
from relay.redis.endpoint import SilentTls
from relay.redis.link import ClusterMode

#: What the name of an error looks like; AWS's own codes stand in brackets.
NAMES = re.compile(r"\b[A-Za-z]+(?:Error|Exception)s?\b(?!\))|\b(?:psycopg2|redis|botocore|gevent)\.|\bE[A-Z]{4,}\b|_")
SECRET = "QXJ-hunter2-ZKV"


#: Settings that are named.
SETTINGS = re.compile("DATABASE_URL|REDIS_URL|SMTP_RELAY_REDIS_TLS_VERIFY|AWS_ACCESS_KEY_ID|AWS_SECRET_ACCESS_KEY")


def in_plain_words(said: str) -> bool:
    return bool(said) and not NAMES.search(SETTINGS.sub("", said)) and SECRET not in said


def kinds_of(module: object, root: type[BaseException]) -> list[type[BaseException]]:
    return [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, root)]


def network_errors() -> Iterator[BaseException]:
    yield TimeoutError(SECRET)
    yield socket.gaierror(socket.EAI_NONAME, SECRET)
    yield UnicodeError(SECRET)
    for number in (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EPIPE,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
        errno.EMFILE,
        errno.ENFILE,
        errno.ECONNABORTED,
        errno.EACCES,
        errno.ENOENT,
        errno.EADDRNOTAVAIL,
    ):
        yield OSError(number, SECRET)
    yield ssl.SSLCertVerificationError(1, SECRET)
    yield ssl.SSLError(1, SECRET)
    yield ssl.SSLEOFError(8, SECRET)


@pytest.mark.parametrize("error", list(network_errors()), ids=repr)
def test_errors_of_the_network(error: BaseException) -> None:
    summary = redaction.summary(error)
    for said in (in_words(summary, {}), postgres_cause(error), redis_cause(summary), call_cause(type(error).__name__)):
        assert in_plain_words(said), said


@pytest.mark.parametrize("error", list(network_errors()), ids=repr)
def test_what_a_library_raises_from_an_error_of_the_network_is_said_as_that(error: BaseException) -> None:
    """redis-py and botocore wrap what the system said, by whatever way the relay connects."""
    said = in_words(redaction.summary(error), {})
    if "not known" in said or isinstance(error, ssl.SSLError):
        return
    for kind, words in ((redis.exceptions.ConnectionError, redis_cause), (OSError, call_cause)):
        wrapped = kind(SECRET)
        wrapped.__cause__ = error
        assert words(redaction.summary(wrapped)) == said


@pytest.mark.parametrize("kind", [*kinds_of(redis.exceptions, redis.exceptions.RedisError), SilentTls, ClusterMode])
def test_each_error_of_redis(kind: type[BaseException]) -> None:
    try:
        error = kind(SECRET)
    except (TypeError, ValueError):
        error = kind.__new__(kind)
    assert in_plain_words(redis_cause(redaction.summary(error)))


@pytest.mark.parametrize("kind", kinds_of(botocore.exceptions, botocore.exceptions.BotoCoreError))
def test_each_error_of_botocore(kind: type[BaseException]) -> None:
    assert in_plain_words(call_cause(kind.__name__)), call_cause(kind.__name__)


@pytest.mark.parametrize("kind", kinds_of(psycopg2, psycopg2.Error))
@pytest.mark.parametrize(
    "text", [SECRET, f"FATAL: {SECRET}", f'connection to server at "{SECRET}" failed: Connection refused']
)
def test_each_error_of_psycopg2(kind: type[psycopg2.Error], text: str) -> None:
    assert in_plain_words(postgres_cause(kind(text)))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("NoCredentials", "no AWS credentials were found"),
        ("QueueDoesNotExist", "there is no such queue (QueueDoesNotExist)"),
        ("AccessDeniedException", "the role may not do this (AccessDeniedException)"),
        ("InvalidClientTokenId", "AWS refuses the credentials (InvalidClientTokenId)"),
        ("HTTP502", "the service is in trouble (HTTP502)"),
        ("HTTP404", "what answers at the endpoint is not the service (HTTP404)"),
        ("ConnectionRefusedError", "the connection was refused"),
        ("TimeoutError", "it did not answer in time"),
        ("SomethingNew", "for a reason that is not known here: something new (SomethingNew)"),
        ("HTTPSomethingNewError", "for a reason that is not known here: http something new"),
    ],
)
def test_codes_of_calls(code: str, words: str) -> None:
    assert call_cause(code).startswith(words)
