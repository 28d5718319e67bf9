"""The relay's certificate: loaded strictly, handed out as the current context, loaded again when it was renewed."""

from __future__ import annotations

import os
import ssl
import time
from typing import Final, NoReturn

#: Of one file: what changes when it is written, replaced or renamed over.
_Signature = tuple[int, int, int]


#: Days before its end from which a certificate is worth a warning.
WARN_DAYS: Final = 14

# OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10


class CertificateError(Exception):
    """The pair can't be used. The text is one line that names the variable and the path, fit for stderr and the log."""


class _PassphraseNeeded(Exception):
    pass


class CertificateStore:
    """The certificate that new connections get.

    A server reads `context` at the moment of each handshake, never earlier, so that a renewed certificate serves from
    the next connection on while the present ones keep theirs.
    """

    def __init__(self, cert_path: str, key_path: str) -> None:
        """Loads the PEM files. Raises CertificateError."""
        self.cert_path = cert_path
        self.key_path = key_path
        self._signature = self._current_signature()
        self.context = _load(cert_path, key_path)

    def changed(self) -> bool:
        """Whether either file differs from what was last loaded or tried; costs two stat() calls."""
        return self._current_signature() != self._signature

    def reload(self) -> None:
        """Loads the files again. Raises CertificateError and keeps the context there is.

        A pair that failed counts as tried: `changed` becomes true again with the next write, so that a renewal that
        replaces one file before the other is refused once and then taken.
        """
        self._signature = self._current_signature()
        self.context = _load(self.cert_path, self.key_path)

    def _current_signature(self) -> tuple[_Signature | None, _Signature | None]:
        return _signature(self.cert_path), _signature(self.key_path)


def _signature(path: str) -> _Signature | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _load(cert_path: str, key_path: str) -> ssl.SSLContext:
    """A server context, TLS 1.2 or newer, with the ciphers that Python deems sane. Raises CertificateError."""
    for variable, path in (("SMTP_RELAY_TLS_CERT_PATH", cert_path), ("SMTP_RELAY_TLS_KEY_PATH", key_path)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise CertificateError(f"{variable} is {path!r}: should be a readable PEM file: {reason}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(cert_path, key_path, password=_no_passphrase)
    except _PassphraseNeeded:
        # The cause is left out: it would say no more.
        raise CertificateError(
            f"SMTP_RELAY_TLS_KEY_PATH is {key_path!r}: should be a key without a passphrase"
        ) from None
    except (ssl.SSLError, ValueError, OSError) as error:
        raise CertificateError(_reason(error, cert_path, key_path)) from error
    return context


def _no_passphrase() -> NoReturn:
    raise _PassphraseNeeded


def _reason(error: Exception, cert_path: str, key_path: str) -> str:
    reason = getattr(error, "reason", None) or ""
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
        return f"SMTP_RELAY_TLS_KEY_PATH is {key_path!r}: should be the key of {cert_path!r}, it is another's"
    if reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"):
        return f"SMTP_RELAY_TLS_CERT_PATH is {cert_path!r}: should have a key and digest of today's strength"
    if not _holds(cert_path, b"-----BEGIN CERTIFICATE-----"):
        return f"SMTP_RELAY_TLS_CERT_PATH is {cert_path!r}: should be a PEM file with a certificate"
    if not _holds(key_path, b"PRIVATE KEY-----"):
        return f"SMTP_RELAY_TLS_KEY_PATH is {key_path!r}: should be a PEM file with a private key"
    return (
        f"SMTP_RELAY_TLS_CERT_PATH is {cert_path!r}: should be a certificate that goes with SMTP_RELAY_TLS_KEY_PATH "
        f"{key_path!r}: {reason or type(error).__name__}"
    )


def _holds(path: str, marker: bytes) -> bool:
    with open(path, "rb") as file:
        return marker in file.read(1 << 20)


def expiry_warning(store: CertificateStore) -> str | None:
    """One line, if clients that verify refuse this certificate for its dates or soon will; nothing else is judged.

    A client that trusts this certificate alone shakes hands with the store's context, in memory.
    """
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_context.load_verify_locations(store.cert_path)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = store.context.wrap_bio(to_server, to_client, server_side=True)
    what = f"SMTP_RELAY_TLS_CERT_PATH is {store.cert_path!r}:"
    try:
        for party in (client, server, client):
            try:
                party.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLCertVerificationError as error:
        known = {_EXPIRED: "has expired", _NOT_YET_VALID: "is not valid yet"}
        if error.verify_code not in known:
            return None
        return f"{what} {known[error.verify_code]}, clients that verify it will not send"
    certificate = client.getpeercert()
    if not certificate:
        return None
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400
    return f"{what} expires in {days:.0f} days" if days < WARN_DAYS else None
