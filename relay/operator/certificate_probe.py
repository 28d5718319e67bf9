"""Whether TLS can be served with the certificate of the settings, as `--check` of relay and HTTP process sees it."""

from __future__ import annotations

from collections.abc import Iterator

from relay.operator.finding import FAIL, OK, WARN, Finding
from relay.server.certificate import CertificateStore, expiry_warning, refused_by_clients
from relay.server.openssl_policy import expensive_groups


def findings(cert_path: str, key_path: str) -> Iterator[Finding]:
    """One line. Raises CertificateError."""
    store = CertificateStore(cert_path, key_path)
    expensive = expensive_groups(store.context)
    wrong_dates = expiry_warning(store)
    if expensive:
        yield Finding(FAIL, "certificate", f"OpenSSL accepts TLS groups that cost too much CPU: {', '.join(expensive)}")
    elif wrong_dates:
        yield Finding(FAIL if refused_by_clients(store) else WARN, "certificate", wrong_dates)
    else:
        yield Finding(OK, "certificate", cert_path)
