"""Every setting of the relay: its variable, default and bounds (contract section 2).

Plain data, so that a worker can hold it without the library that validates it: `config.environment` does that once at
start, in a separate process, and what it found travels from there as JSON. Tests make a `Settings` directly.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import EllipsisType
from typing import Final, Literal, NamedTuple, TypeVar

_T = TypeVar("_T")

#: What `Settings.log_level` may be, from the most to the least that is written.
LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")


class RecipientRule(StrEnum):
    """How the recipients of a message are found: `SMTP_RELAY_RECIPIENTS`."""

    #: The header's To, Cc and Bcc, and the envelope's other recipients.
    MERGE = "merge"
    #: The envelope alone; each header field keeps those of its addresses that are in it, the rest is Bcc.
    ENVELOPE = "envelope"
    #: The header's To, Cc and Bcc alone, whatever the envelope says.
    HEADERS = "headers"


class Source(NamedTuple):
    """Where a setting comes from and what may be in it; `config.environment` makes validators of these."""

    #: The variables that give it, the first that is set and not empty wins.
    variables: tuple[str, ...]
    #: Completes "should be …" in the line that refuses a wrong value.
    expected: str
    #: The value is never shown, not even where it is wrong.
    secret: bool = False
    minimum: float | None = None
    maximum: float | None = None
    #: What a text must match: a regular expression, or one of the forms that `config.environment` knows by name.
    form: str | None = None


def _setting(
    variables: str,
    expected: str,
    *,
    default: _T | EllipsisType = ...,
    default_factory: Callable[[], _T] | None = None,
    secret: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    form: str | None = None,
) -> _T:
    """A field, with the type of its values as `dataclasses.field` has it. Without a default it has to be set."""
    metadata = {"source": Source(tuple(variables.split()), expected, secret, minimum, maximum, form)}
    if default_factory is not None:
        return field(default_factory=default_factory, metadata=metadata, repr=not secret)
    if not isinstance(default, EllipsisType):
        return field(default=default, metadata=metadata, repr=not secret)
    required: _T = field(metadata=metadata, repr=not secret)
    return required


def _whole(variables: str, default: _T, minimum: int, maximum: int, *, what: str = "a whole number") -> _T:
    return _setting(variables, f"{what} from {minimum} to {maximum}", default=default, minimum=minimum, maximum=maximum)


def _seconds(variables: str, default: float, minimum: float, maximum: float) -> float:
    return _setting(
        variables, f"seconds, from {minimum:g} to {maximum:g}", default=default, minimum=minimum, maximum=maximum
    )


def _switch(variables: str, default: bool) -> bool:
    return _setting(variables, "true or false (or 1 or 0)", default=default)


def _machine_name() -> str:
    """The host name if it can stand in a greeting, which `_` and its like can't (RFC 5321 section 4.1.2)."""
    name = socket.gethostname().rstrip(".")
    labels = name.split(".")
    plain = all(label and label.isascii() and label.replace("-", "").isalnum() for label in labels)
    return name if plain and len(name) <= 253 else "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment said, validated. Sizes are octets, durations seconds; None means not set."""

    database_url: str = _setting(
        "DATABASE_URL",
        "a URL like postgres://user:password@host:5432/name, with parameters that libpq knows",
        secret=True,
        form="postgres-url",
    )
    redis_url: str | None = _setting(
        "REDIS_URL", "a URL like redis://host:6379/0 or rediss://…", default=None, secret=True, form="redis-url"
    )
    #: Whether the certificate of a rediss:// server is verified. Some platforms present a self-signed one.
    redis_tls_verify: bool = _switch("SMTP_RELAY_REDIS_TLS_VERIFY", True)

    port: int = _whole("SMTP_RELAY_PORT PORT", 2587, 1, 65535, what="a port number")
    host: str = _setting(
        "SMTP_RELAY_HOST",
        "an address or name to listen on, like 0.0.0.0 or ::",
        default="0.0.0.0",  # noqa: S104 - contract section 2
        form=r"[^\s/@]+",
    )
    tls_cert_path: str | None = _setting("SMTP_RELAY_TLS_CERT_PATH", "the path of a PEM file", default=None)
    tls_key_path: str | None = _setting("SMTP_RELAY_TLS_KEY_PATH", "the path of a PEM file", default=None)
    #: A second listener with implicit TLS (RFC 8314); needs the certificate.
    tls_port: int | None = _whole("SMTP_RELAY_TLS_PORT", None, 1, 65535, what="a port number")
    #: What the greeting and EHLO name.
    hostname: str = _setting(
        "SMTP_RELAY_HOSTNAME", "a host name", default_factory=_machine_name, form=r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*"
    )

    max_message_size_bytes: int = _whole("SMTP_RELAY_MAX_MESSAGE_SIZE_BYTES", 41_943_040, 1024, 1 << 30)
    max_recipients: int = _whole("SMTP_RELAY_MAX_RECIPIENTS", 1000, 1, 100_000)
    max_parts: int = _whole("SMTP_RELAY_MAX_PARTS", 1000, 1, 100_000)
    max_part_depth: int = _whole("SMTP_RELAY_MAX_PART_DEPTH", 120, 1, 200)
    #: Of all workers together.
    max_connections: int = _whole("SMTP_RELAY_MAX_CONNECTIONS", 1000, 1, 1_000_000)
    #: From one IPv4 address or one IPv6 /64, of all workers together.
    max_connections_per_address: int = _whole("SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS", 100, 1, 1_000_000)
    #: 0 is no limit.
    max_messages_per_connection: int = _whole("SMTP_RELAY_MAX_MESSAGES_PER_CONNECTION", 10_000, 0, 1_000_000_000)
    #: Over all processes; 0 is no limit, and costs nothing.
    key_messages_per_minute: int = _whole("SMTP_RELAY_KEY_MESSAGES_PER_MINUTE", 0, 0, 1_000_000_000)
    address_messages_per_minute: int = _whole("SMTP_RELAY_ADDRESS_MESSAGES_PER_MINUTE", 0, 0, 1_000_000_000)
    max_commands_before_auth: int = _whole("SMTP_RELAY_MAX_COMMANDS_BEFORE_AUTH", 100, 1, 1_000_000)
    #: Different wrong keys from one address within 15 minutes; 0 refuses no address.
    max_auth_failures_per_address: int = _whole("SMTP_RELAY_MAX_AUTH_FAILURES_PER_ADDRESS", 10, 0, 1_000_000)
    auth_refusal_seconds: int = _whole(
        "SMTP_RELAY_AUTH_REFUSAL_SECONDS", 900, 1, 86_400, what="seconds, a whole number"
    )
    #: The most that the reply to a failed AUTH is kept back; the first one is kept back for a thirty-second of it.
    auth_delay_seconds: float = _seconds("SMTP_RELAY_AUTH_DELAY_SECONDS", 8.0, 0, 30)
    #: Octets a second that a client has to keep up in message data.
    min_rate: int = _whole("SMTP_RELAY_MIN_RATE", 1000, 1, 1_000_000_000)
    connection_seconds: float = _seconds("SMTP_RELAY_CONNECTION_SECONDS", 3600.0, 1, 604_800)
    #: Networks of proxies that name their client by the PROXY protocol; None: the protocol is not expected.
    proxy_protocol: str | None = _setting(
        "SMTP_RELAY_PROXY_PROTOCOL",
        "networks like 10.0.0.0/8, 2001:db8::/32, with commas between them",
        default=None,
        form="networks",
    )
    #: For the next command of a client that has authenticated (RFC 5321 section 4.5.3.2.7), and of one that has not.
    command_timeout_seconds: float = _seconds("SMTP_RELAY_COMMAND_TIMEOUT_SECONDS", 300.0, 1, 3600)
    login_timeout_seconds: float = _seconds("SMTP_RELAY_LOGIN_TIMEOUT_SECONDS", 60.0, 1, 3600)
    tls_handshake_seconds: float = _seconds("SMTP_RELAY_TLS_HANDSHAKE_SECONDS", 10.0, 1, 300)
    drain_seconds: float = _seconds("SMTP_RELAY_DRAIN_SECONDS", 25.0, 0, 3600)

    recipients: RecipientRule = _setting(  # noqa: RUF009 - returns dataclasses.field()
        "SMTP_RELAY_RECIPIENTS", "merge, envelope or headers", default=RecipientRule.MERGE
    )
    #: How long a repeated message is known as one; 0 is off.
    dedupe_seconds: int = _whole("SMTP_RELAY_DEDUPE_SECONDS", 3600, 0, 604_800)
    allow_utf8_local_parts: bool = _switch("SMTP_RELAY_ALLOW_UTF8_LOCAL_PARTS", False)

    #: Above this a message goes to a file and through a separate process.
    spool_threshold_bytes: int = _whole("SMTP_RELAY_SPOOL_THRESHOLD_BYTES", 1_000_000, 1024, 1 << 30)
    #: Octets of memory for those: what takes more waits for its turn, with the client waiting at the final dot.
    memory_budget_bytes: int = _whole("SMTP_RELAY_MEMORY_BUDGET_BYTES", 200_000_000, 1_000_000, 1 << 40)
    spool_dir: str = _setting("SMTP_RELAY_SPOOL_DIR", "a writable directory", default_factory=tempfile.gettempdir)

    queue_url: str | None = _setting(
        "BACKGROUND_JOBS_QUEUE_URL", "the URL of an SQS queue", default=None, form=r"https?://[^\s/@]+/\S*"
    )
    db_polling_fallback: bool = _switch("BACKGROUND_JOBS_DB_POLLING_FALLBACK", True)
    require_queue: bool = _switch("BACKGROUND_JOBS_REQUIRE_QUEUE", False)
    aws_region: str = _setting(
        "AWS_REGION", "an AWS region like us-east-1", default="us-east-1", form=r"[a-z]{2,}(-[a-z0-9]+)+"
    )

    email_provider_max_attempts: int = _whole("EMAIL_PROVIDER_MAX_ATTEMPTS", 3, 1, 100)
    tracking_secret: str | None = _setting("TRACKING_SECRET", "a secret text", default=None, secret=True)
    tracking_base_url: str | None = _setting(
        "TRACKING_BASE_URL", "an http or https URL", default=None, form=r"https?://[^\s/]+\S*"
    )
    next_public_app_url: str | None = _setting(
        "NEXT_PUBLIC_APP_URL", "an http or https URL", default=None, form=r"https?://[^\s/]+\S*"
    )
    vercel_url: str | None = _setting("VERCEL_URL", "a host name", default=None, form=r"[^\s/]+\S*")
    app_url: str | None = _setting("APP_URL", "an http or https URL", default=None, form=r"https?://[^\s/]+\S*")
    webhook_secret_encryption_key: str | None = _setting(
        "WEBHOOK_SECRET_ENCRYPTION_KEY", "a secret text", default=None, secret=True
    )

    #: Whether messages are refused whose attachments have file names that Amazon SES refuses.
    refuse_extensions: bool = _switch("SMTP_RELAY_REFUSE_EXTENSIONS", True)
    #: The provider that takes mail from the delivery worker, and where `maildir` puts it.
    provider: Literal["ses", "smtp", "maildir"] = _setting("SMTP_RELAY_PROVIDER", "ses, smtp or maildir", default="ses")
    maildir: str | None = _setting("SMTP_RELAY_MAILDIR", "the path of a folder", default=None)
    #: Where `smtp` hands mails to.
    smarthost_host: str | None = _setting(
        "SMTP_RELAY_SMARTHOST_HOST", "a host name or an address", default=None, form=r"[A-Za-z0-9_:][A-Za-z0-9._:-]*"
    )
    smarthost_port: int | None = _whole(
        "SMTP_RELAY_SMARTHOST_PORT", None, minimum=1, maximum=65535, what="a port number"
    )
    smarthost_tls: Literal["starttls", "implicit", "none"] = _setting(
        "SMTP_RELAY_SMARTHOST_TLS", "starttls, implicit or none", default="starttls"
    )
    smarthost_user: str | None = _setting(
        "SMTP_RELAY_SMARTHOST_USER", "a user name", default=None, secret=True, form=r"[^\x00-\x1f\x7f]{1,255}"
    )
    smarthost_password: str | None = _setting(
        "SMTP_RELAY_SMARTHOST_PASSWORD", "a password", default=None, secret=True, form=r"[^\x00-\x1f\x7f]{1,512}"
    )
    #: Whose certificates are trusted there; None: those that the system trusts.
    smarthost_ca_path: str | None = _setting("SMTP_RELAY_SMARTHOST_CA_PATH", "the path of a PEM file", default=None)
    #: Of one process.
    #: Recipients a second that it takes; None: any number.
    smarthost_rate: float | None = _setting(
        "SMTP_RELAY_SMARTHOST_RATE",
        "recipients a second, from 0.01 to 100000",
        default=None,
        minimum=0.01,
        maximum=100_000,
    )
    smarthost_connections: int = _whole("SMTP_RELAY_SMARTHOST_CONNECTIONS", 20, minimum=1, maximum=1000)
    #: Mails that one delivery process sends at a time, and how many such processes there are.
    delivery_concurrency: int = _whole("SMTP_RELAY_DELIVERY_CONCURRENCY", 20, 1, 1000)
    delivery_processes: int = _whole("SMTP_RELAY_DELIVERY_PROCESSES", 1, 1, 256)
    #: Recipients a second that an account takes, where it does not say; and among how many processes of all machines
    #: its rate is shared while there is no Redis (None: those of this machine).
    ses_rate: float = _setting(
        "SMTP_RELAY_SES_RATE",
        "recipients a second, from 0.01 to 100000",
        default=1.0,
        minimum=0.01,
        maximum=100_000,
    )
    pace_shares: int | None = _whole("SMTP_RELAY_PACE_SHARES", None, 1, 10_000)
    delivery_metrics_port: int | None = _whole("SMTP_RELAY_DELIVERY_METRICS_PORT", None, 1, 65535, what="a port number")
    #: What records that a mail was sent: SES's own event, this worker, or (auto) SES where that can be.
    ses_send_events: Literal["auto", "ses", "ours"] = _setting(
        "SMTP_RELAY_SES_SEND_EVENTS", "auto, ses or ours", default="auto"
    )
    #: Whether the delivery worker makes webhook deliveries; not: they are left to OpenSend's own.
    webhooks: bool = _switch("SMTP_RELAY_WEBHOOKS", True)
    #: What becomes of a mail that the provider may have, when no event says so.
    unclear: Literal["again", "fail"] = _setting("SMTP_RELAY_UNCLEAR", "again or fail", default="again")
    ses_events_topic: str | None = _setting("SES_EVENTS_SNS_TOPIC_ARN", "the ARN of an SNS topic", default=None)

    #: Where `python -m relay.web` listens, and in how many processes.
    http_port: int = _whole("SMTP_RELAY_HTTP_PORT PORT", 8080, 1, 65535, what="a port number")
    http_processes: int = _whole("SMTP_RELAY_HTTP_PROCESSES", 1, 1, 256)
    #: HTTPS with the relay's certificate; else TLS is the platform's.
    http_tls: bool = _switch("SMTP_RELAY_HTTP_TLS", False)
    #: Networks of proxies whose X-Forwarded-For is used, and of those that begin with a PROXY header.
    http_forwarded_for: str | None = _setting(
        "SMTP_RELAY_HTTP_FORWARDED_FOR",
        "networks like 10.0.0.0/8, 2001:db8::/32, with commas between them",
        default=None,
        form="networks",
    )
    http_proxy_protocol: str | None = _setting(
        "SMTP_RELAY_HTTP_PROXY_PROTOCOL",
        "networks like 10.0.0.0/8, 2001:db8::/32, with commas between them",
        default=None,
        form="networks",
    )
    http_metrics_port: int | None = _whole("SMTP_RELAY_HTTP_METRICS_PORT", None, 1, 65535, what="a port number")

    web_concurrency: int = _whole("WEB_CONCURRENCY", 1, 1, 256)
    log_level: Literal["debug", "info", "warning", "error", "critical"] = _setting(
        "SMTP_RELAY_LOG_LEVEL", "debug, info, warning, error or critical", default="info"
    )
    #: Which lines name the client's IP address: those of what was refused or failed, all of a connection's, or none.
    log_client_addresses: Literal["failures", "all", "none"] = _setting(
        "SMTP_RELAY_LOG_CLIENT_ADDRESSES", "failures, all or none", default="failures"
    )
    #: `auto` is text on a terminal, else JSON.
    log_format: Literal["auto", "text", "json"] = _setting(
        "SMTP_RELAY_LOG_FORMAT", "auto, text or json", default="auto"
    )
    sentry_dsn: str | None = _setting(
        "SENTRY_DSN", "a DSN like https://key@host/1", default=None, secret=True, form=r"https?://[^\s/@]+@[^\s/@]+/\S+"
    )
    #: Where the first worker exposes its metrics, the second on the next port, and so on. None: nowhere.
    metrics_port: int | None = _whole("SMTP_RELAY_METRICS_PORT", None, 1, 65535, what="a port number")
    metrics_host: str = _setting(
        "SMTP_RELAY_METRICS_HOST", "an address to listen on", default="127.0.0.1", form=r"[^\s/@]+"
    )

    def writes_json(self) -> bool:
        """Whether log lines are JSON: as the setting says, or where standard output is no terminal."""
        return self.log_format == "json" or (self.log_format == "auto" and not os.isatty(1))

    def to_json(self) -> bytes:
        """For the way from the process that validated to the workers. Holds secrets: never log or store it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, document: bytes) -> Settings:
        """The reverse of `to_json`. Trusts its input."""
        values = json.loads(document)
        values["recipients"] = RecipientRule(values["recipients"])
        return cls(**values)
