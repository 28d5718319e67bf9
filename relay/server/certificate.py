"""The relay's certificate: loaded strictly, handed out as the current context, loaded again when it was renewed."""

from __future__ import annotations

import errno
import os
import ssl
import time
from typing import Final, NamedTuple, NoReturn

from relay.core.memory_file import memory_file

#: Of one file: what changes when it is written, replaced, renamed over, or becomes readable.
_Signature = tuple[int, int, int, int]


#: Days before its end from which a certificate is worth a warning.
WARN_DAYS: Final = 14

#: A chain has some kilobytes. Larger files are refused; octets.
MAX_FILE_OCTETS: Final = 65_536

#: For TLS 1.2: forward secrecy by elliptic curves, and authenticated encryption. No CBC, no finite fields.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

#: By OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_DATE_FAULTS: Final = {9: "is not valid yet", 10: "has expired"}


#: What keeps a process from reading a file that is sound.
_OUR_TROUBLE: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO))


class CertificateError(Exception):
    """The pair can't be used. The text is one line that names the variable and the path, fit for stderr and the log."""

    @property
    def passing(self) -> bool:
        """Whether the same files may be usable the next time."""
        cause = self.__cause__
        return isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno in _OUR_TROUBLE


class _PassphraseNeeded(Exception):
    pass


class Pair(NamedTuple):
    """A certificate with its chain, and its private key, as the octets of PEM files."""

    certificate: bytes
    key: bytes

    def encode(self) -> bytes:
        """For the way to another process of this service. Holds the key: never log or store it."""
        return len(self.certificate).to_bytes(4, "big") + self.certificate + self.key

    @classmethod
    def decode(cls, octets: bytes) -> Pair:
        """The reverse of `encode`. Trusts its input."""
        end = 4 + int.from_bytes(octets[:4], "big")
        return cls(octets[4:end], octets[end:])


class CertificateStore:
    """The certificate that new connections get.

    A server reads `context` at the moment of each handshake, never earlier, so that a renewed certificate serves from
    the next connection on while the present ones keep theirs. `pair` is what the context was made of.
    """

    def __init__(self, cert_path: str, key_path: str, pair: Pair | None = None) -> None:
        """Loads the PEM files, or takes a `pair` that was loaded before, whatever has become of the files since.

        Raises CertificateError.
        """
        self.cert_path = cert_path
        self.key_path = key_path
        # With a pair from elsewhere the files count as changed: they are looked at when the service runs.
        self._signature = None if pair is not None else self._current_signature()
        self.pair = self._read() if pair is None else pair
        self.context = _context(self.pair, cert_path, key_path)

    def changed(self) -> bool:
        """Whether either file differs from what was last loaded or tried; costs two stat() calls."""
        return self._current_signature() != self._signature

    def reload(self) -> bool:
        """Loads the files again; whether they hold another pair than before. Raises CertificateError and keeps the
        context there is.

        A pair that failed counts as tried: `changed` becomes true again with the next write, so that a renewal that
        replaces one file before the other is refused once and then taken. It does not count where we are to blame.
        """
        tried_before, self._signature = self._signature, self._current_signature()
        try:
            pair = self._read()
            self.context = _context(pair, self.cert_path, self.key_path)
        except CertificateError as error:
            if error.passing:
                self._signature = tried_before
            raise
        different, self.pair = pair != self.pair, pair
        return different

    def _read(self) -> Pair:
        return Pair(
            _octets("SMTP_RELAY_TLS_CERT_PATH", self.cert_path), _octets("SMTP_RELAY_TLS_KEY_PATH", self.key_path)
        )

    def _current_signature(self) -> tuple[_Signature | None, _Signature | None]:
        return _signature(self.cert_path), _signature(self.key_path)


def _signature(path: str) -> _Signature | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _octets(variable: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            octets = file.read(MAX_FILE_OCTETS + 1)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise CertificateError(f"{variable} is {path!r}: should be a readable PEM file: {reason}") from error
    if len(octets) > MAX_FILE_OCTETS:
        raise CertificateError(f"{variable} is {path!r}: should be a PEM file of at most {MAX_FILE_OCTETS} octets")
    return octets


def _context(pair: Pair, cert_path: str, key_path: str) -> ssl.SSLContext:
    """A server context, TLS 1.2 or newer, with ephemeral keys on elliptic curves and authenticated encryption alone.

    Which curves: see `relay.server.openssl_policy`. Raises CertificateError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(_CIPHERS)
    # Few SMTP clients resume. Two tickets cost CPU, and they arrive with the first reply: a client that writes before
    # it reads on a connection without buffers (libesmtp on loopback) waits for us for ever.
    context.num_tickets = 0
    try:
        with memory_file(pair.certificate) as certificate, memory_file(pair.key) as key:
            context.load_cert_chain(certificate, key, password=_no_passphrase)
    except _PassphraseNeeded:
        # The cause is left out: it would say no more.
        raise CertificateError(
            f"SMTP_RELAY_TLS_KEY_PATH is {key_path!r}: should be a key without a passphrase"
        ) from None
    except (ssl.SSLError, ValueError, OSError) as error:
        raise CertificateError(_reason(error, pair, cert_path, key_path)) from error
    return context


def _no_passphrase() -> NoReturn:
    raise _PassphraseNeeded


def _reason(error: Exception, pair: Pair, cert_path: str, key_path: str) -> str:
    reason = getattr(error, "reason", None) or ""
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
        return f"SMTP_RELAY_TLS_KEY_PATH is {key_path!r}: should be the key of {cert_path!r}, it belongs to another"
    if reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"):
        return f"SMTP_RELAY_TLS_CERT_PATH is {cert_path!r}: should have a stronger key or digest"
    if b"-----BEGIN CERTIFICATE-----" not in pair.certificate:
        return f"SMTP_RELAY_TLS_CERT_PATH is {cert_path!r}: should be a PEM file with a certificate"
    if b"PRIVATE KEY-----" not in pair.key:
        return f"SMTP_RELAY_TLS_KEY_PATH is {key_path!r}: should be a PEM file with a private key"
    if not _readable(pair.certificate):
        return f"SMTP_RELAY_TLS_CERT_PATH is {cert_path!r}: should be a PEM file of whole certificates, one is damaged"
    if isinstance(error, ssl.SSLError) and not reason:
        return f"SMTP_RELAY_TLS_KEY_PATH is {key_path!r}: should be a whole private key, it is damaged"
    # OpenSSL's names of what is wrong are words with underscores.
    words = reason.replace("_", " ").lower() or "OpenSSL does not take them"
    return (
        f"SMTP_RELAY_TLS_CERT_PATH is {cert_path!r}: should be a certificate that goes with SMTP_RELAY_TLS_KEY_PATH "
        f"{key_path!r}: {words}"
    )


def _readable(certificates: bytes) -> bool:
    """Whether OpenSSL can read each certificate of a PEM file, whatever it is good for."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificates.decode("latin-1"))
    except (ssl.SSLError, ValueError):
        return False
    return True


def refused_by_clients(store: CertificateStore) -> bool:
    """Whether clients that verify refuse this certificate for its dates, today."""
    return _dates(store)[0] is not None


def expiry_warning(store: CertificateStore) -> str | None:
    """One line, if clients that verify refuse this certificate for its dates or soon will; nothing else is judged."""
    refusal, days = _dates(store)
    what = f"SMTP_RELAY_TLS_CERT_PATH is {store.cert_path!r}:"
    if refusal is not None:
        return f"{what} {refusal}, clients that verify it will not send"
    plural = "" if days is not None and round(days) == 1 else "s"
    return f"{what} expires in {days:.0f} day{plural}" if days is not None and days < WARN_DAYS else None


def _dates(store: CertificateStore) -> tuple[str | None, float | None]:
    """Why a client refuses the certificate for its dates, if so, and the days left, if known.

    A client that trusts this certificate alone shakes hands with the store's context, in memory.
    """
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        with memory_file(store.pair.certificate) as path:
            client_context.load_verify_locations(path)
        client = client_context.wrap_bio(to_client, to_server)
        server = store.context.wrap_bio(to_server, to_client, server_side=True)
        for party in (client, server, client):
            try:
                party.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLCertVerificationError as error:
        return _DATE_FAULTS.get(error.verify_code), None
    except OSError:
        # No descriptor is left, for instance: the dates are unknown for now, and the certificate serves all the same.
        return None, None
    certificate = client.getpeercert()
    if not certificate:
        return None, None
    return None, (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400
