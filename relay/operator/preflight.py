"""The settings of this process, tested against the machine that it runs on: before anything listens."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator

from config import environment
from config.environment import WrongSettings
from config.settings import Settings
from relay.core.tls_client import client_context
from relay.server import descriptors
from relay.server.certificate import CertificateError, CertificateStore


def load() -> Settings:
    """The settings of the environment. Raises WrongSettings for each that is wrong, alone or together with others."""
    settings = environment.load()
    problems = list(_contradictions(settings))
    if problems:
        raise WrongSettings("\n".join(problems))
    return settings


def _contradictions(settings: Settings) -> Iterator[str]:
    """What each value allows and all of them together don't. One line for each."""
    yield from _tls_contradictions(settings)
    if settings.provider == "smtp":
        yield from _smart_host_contradictions(settings)
    if settings.queue_url is None:
        wanted = "BACKGROUND_JOBS_QUEUE_URL is not set: should be the URL of an SQS queue, because"
        if settings.require_queue:
            yield f"{wanted} BACKGROUND_JOBS_REQUIRE_QUEUE is true"
        elif not settings.db_polling_fallback:
            yield f"{wanted} BACKGROUND_JOBS_DB_POLLING_FALLBACK is false and nothing would deliver mail"
    too_many = descriptors.descriptor_shortage(settings.max_connections)
    if too_many:
        yield too_many
    if not (os.path.isdir(settings.spool_dir) and os.access(settings.spool_dir, os.W_OK | os.X_OK)):
        yield f"SMTP_RELAY_SPOOL_DIR is {settings.spool_dir!r}: should be a writable directory"
    if settings.metrics_port is not None and settings.metrics_port + settings.web_concurrency > 65536:
        yield f"SMTP_RELAY_METRICS_PORT is {settings.metrics_port}: should leave a port for each worker, up to 65535"


def _smart_host_contradictions(settings: Settings) -> Iterator[str]:
    if settings.smarthost_host is None:
        yield "SMTP_RELAY_SMARTHOST_HOST is not set: should be a host name, because SMTP_RELAY_PROVIDER is smtp"
    user, password = settings.smarthost_user, settings.smarthost_password
    if (user is None) != (password is None):
        missing, given = "SMTP_RELAY_SMARTHOST_PASSWORD", "SMTP_RELAY_SMARTHOST_USER"
        if user is None:
            missing, given = given, missing
        yield f"{missing} is not set: should be set, because {given} is"
    if settings.smarthost_tls == "none" and password is not None and not is_loopback(settings.smarthost_host or ""):
        yield (
            "SMTP_RELAY_SMARTHOST_TLS is 'none': should be starttls or implicit, because a password would travel in the"
            " clear"
        )
    ca_path = settings.smarthost_ca_path
    if ca_path is not None:
        try:
            client_context(ca_path)
        except (OSError, ValueError):
            yield f"SMTP_RELAY_SMARTHOST_CA_PATH is {ca_path!r}: should be the path of a PEM file of certificates"


def is_loopback(host: str) -> bool:
    """Whether what is sent to a host stays on this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls_contradictions(settings: Settings) -> Iterator[str]:
    cert_path, key_path = settings.tls_cert_path, settings.tls_key_path
    if cert_path and key_path:
        try:
            CertificateStore(cert_path, key_path)
        except CertificateError as error:
            yield str(error)
        if settings.tls_port == settings.port:
            yield f"SMTP_RELAY_TLS_PORT is {settings.tls_port}: should be another port than SMTP_RELAY_PORT"
    elif cert_path or key_path:
        missing, given = "SMTP_RELAY_TLS_KEY_PATH", "SMTP_RELAY_TLS_CERT_PATH"
        if key_path:
            missing, given = given, missing
        yield f"{missing} is not set: should be the path of a PEM file, because {given} is set"
        return
    if settings.http_tls and not (cert_path and key_path):
        yield (
            "SMTP_RELAY_HTTP_TLS is true: should be false, or SMTP_RELAY_TLS_CERT_PATH and SMTP_RELAY_TLS_KEY_PATH set"
        )
    if settings.tls_port is not None and not cert_path:
        yield (
            f"SMTP_RELAY_TLS_PORT is {settings.tls_port}: should be unset, or SMTP_RELAY_TLS_CERT_PATH and "
            "SMTP_RELAY_TLS_KEY_PATH set"
        )
