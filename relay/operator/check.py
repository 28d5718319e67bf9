"""`python -m relay --check`: could mail flow with these settings, from here, now? Fit for a release phase.

A line for each part: `ok`, `warn` (mail flows, but something is worse than it could be) or `FAIL`. Exit status 0 when
nothing fails, 1 when something does, 2 for a wrong setting. Nothing is changed anywhere but for one short-lived Redis
key, no secret is shown, and it ends within a few seconds whatever hangs.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import psycopg2
import redis

from config import environment, redaction
from config.settings import Settings
from relay.operator import preflight
from relay.postgres import schema_check
from relay.redis.keys import CHECK_PREFIX
from relay.redis.link import connection_options
from relay.server.certificate import CertificateStore, expiry_warning

#: No check takes longer, in seconds.
LIMIT: Final = 5.0
#: Time limits of the libraries, in seconds: below LIMIT, so that they get to say what was wrong.
_LIBRARY_LIMIT: Final = 4


OK, WARN, FAIL = "ok", "warn", "FAIL"
_COLOURS: Final = {OK: "\x1b[32m", WARN: "\x1b[33m", FAIL: "\x1b[31m"}


class Finding(NamedTuple):
    """One line of the result."""

    level: str
    part: str
    text: str


def main() -> int:
    """Runs every check and prints what it found; the exit status."""
    logging.disable(logging.CRITICAL)  # what the libraries have to say comes with their exceptions
    try:
        settings = preflight.load()
    except environment.WrongSettings as error:
        for line in str(error).splitlines():
            _print(Finding(FAIL, "settings", line))
        return 2
    _print(
        Finding(OK, "settings", f"{settings.web_concurrency} worker(s), listening on {settings.host}:{settings.port}")
    )
    findings = [*_certificate(settings), *_services(settings)]
    for finding in findings:
        _print(finding)
    return 1 if any(finding.level == FAIL for finding in findings) else 0


def _print(finding: Finding) -> None:
    level = f"{finding.level:<4}"
    if os.isatty(1) and not os.environ.get("NO_COLOR"):
        level = f"{_COLOURS[finding.level]}{level}\x1b[0m"
    sys.stdout.write(f"{level}  {finding.part:<12} {finding.text}\n")
    sys.stdout.flush()


# What this machine has.


def _certificate(settings: Settings) -> Iterator[Finding]:
    if not (settings.tls_cert_path and settings.tls_key_path):
        yield Finding(WARN, "certificate", "none: STARTTLS is not offered, API keys travel in the clear")
        return
    wrong_dates = expiry_warning(CertificateStore(settings.tls_cert_path, settings.tls_key_path))
    if wrong_dates:
        yield Finding(WARN, "certificate", wrong_dates)
    else:
        yield Finding(OK, "certificate", settings.tls_cert_path)


# What it reaches. All at the same time, each in a thread that is left behind when it hangs.


def _services(settings: Settings) -> list[Finding]:
    results: dict[str, list[Finding]] = {}
    threads = []
    for part, check in (("database", _database), ("redis", _redis), ("queue", _queue)):
        results[part] = [Finding(WARN if part == "redis" else FAIL, part, f"no answer within {LIMIT:.0f} s")]
        threads.append(threading.Thread(target=_collect, args=(results, part, check, settings), daemon=True))
        threads[-1].start()
    until = time.monotonic() + LIMIT
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [finding for part in list(results) for finding in results[part]]


def _collect(
    results: dict[str, list[Finding]], part: str, check: Callable[[Settings], Iterator[Finding]], settings: Settings
) -> None:
    results[part] = list(check(settings))


def _database(settings: Settings) -> Iterator[Finding]:
    connection: Any = None
    try:
        connection = psycopg2.connect(
            settings.database_url, connect_timeout=_LIBRARY_LIMIT, fallback_application_name="opensend-relay --check"
        )
        connection.set_session(autocommit=True)
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = {_LIBRARY_LIMIT * 1000}")
            found = list(schema_check.problems(cursor))
            version = connection.server_version // 10000
    except psycopg2.Error as error:
        yield Finding(FAIL, "database", _without_password(_first_line(error), settings.database_url))
        return
    finally:
        if connection is not None:
            connection.close()
    for problem in found:
        yield Finding(FAIL, "database", problem)
    if not found:
        yield Finding(OK, "database", f"PostgreSQL {version}, all {len(schema_check.TABLES)} tables as they should be")


def _redis(settings: Settings) -> Iterator[Finding]:
    """Never a failure: mail flows without Redis, more slowly and with fewer repeats noticed."""
    if settings.redis_url is None:
        yield Finding(WARN, "redis", "REDIS_URL is not set: every look-up goes to Postgres, repeats are not noticed")
        return
    options = connection_options(settings.redis_url, verify_tls=settings.redis_tls_verify, timeout=_LIBRARY_LIMIT / 2)
    key = f"{CHECK_PREFIX}{os.getpid()}"
    client = redis.Redis.from_url(settings.redis_url, **options)
    try:
        with client:
            client.ping()
            client.set(key, "1", ex=10)
            if client.get(key) != b"1":
                yield Finding(WARN, "redis", "does not give back what was set")
                return
            # What the cache's scripts need: Redis 6.2 or Valkey, and a single server rather than a cluster.
            client.eval("return redis.call('SMISMEMBER', KEYS[1] .. ':set', '0')", 1, key)
    except (redis.RedisError, OSError) as error:
        text = _without_password(_first_line(error), settings.redis_url)
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            text += "; if your platform signs its own, set SMTP_RELAY_REDIS_TLS_VERIFY=false"
        yield Finding(WARN, "redis", text)
        return
    yield Finding(OK, "redis", "answers, reads and writes")


def _queue(settings: Settings) -> Iterator[Finding]:
    if settings.queue_url is None:
        yield Finding(OK, "queue", "BACKGROUND_JOBS_QUEUE_URL is not set: mails wait in Postgres for a polling worker")
        return
    import boto3  # noqa: PLC0415 - a tenth of a second that polling mode need not pay
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    limits = Config(
        connect_timeout=_LIBRARY_LIMIT / 2, read_timeout=_LIBRARY_LIMIT / 2, retries={"total_max_attempts": 1}
    )
    try:
        client = boto3.client("sqs", region_name=settings.aws_region, config=limits)
        client.get_queue_attributes(QueueUrl=settings.queue_url, AttributeNames=["QueueArn"])
    except ClientError as error:
        code = redaction.detail(error)
        if "AccessDenied" in code:
            text = f"may not be asked for its attributes ({code}); whether jobs may be sent shows when one is"
            yield Finding(WARN, "queue", text)
        else:
            yield Finding(FAIL, "queue", f"{settings.queue_url}: {code}")
    except (BotoCoreError, ValueError) as error:
        yield Finding(FAIL, "queue", f"{settings.queue_url}: {type(error).__name__}")
    else:
        kind = "FIFO" if settings.queue_url.endswith(".fifo") else "standard"
        yield Finding(OK, "queue", f"answers ({kind})")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _without_password(text: str, url: str) -> str:
    """No library of ours puts it into its errors; should one begin to, it stays out of the release's log."""
    raw = urlsplit(url).password
    for password in {raw, unquote(raw)} if raw else ():
        text = text.replace(password, "…")
    return text
