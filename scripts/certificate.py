"""Certificates signed by themselves: for localhost, so that STARTTLS works in development; for doubles and tests."""

from __future__ import annotations

if not __package__:
    raise SystemExit("This is a part of ./scripts/dev, and no command.")

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

#: Names in the certificate for localhost.
_LOCAL = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
)
_LIFETIME = datetime.timedelta(days=3650)
_RENEW_BEFORE = datetime.timedelta(days=30)


def ensure_certificate(directory: Path) -> tuple[Path, Path]:
    """The paths of certificate and private key (PEM), made anew when they are missing or about to expire."""
    certificate_path, key_path = directory / "certificate.pem", directory / "key.pem"
    if certificate_path.exists() and key_path.exists():
        known = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        if known.not_valid_after_utc - _RENEW_BEFORE > datetime.datetime.now(datetime.UTC):
            return certificate_path, key_path
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate_path.unlink(missing_ok=True)
    key_path.unlink(missing_ok=True)
    key_path.touch(mode=0o600)
    key_path.write_bytes(key_pem(key))
    certificate_path.write_bytes(certificate_pem(self_signed(key, "localhost", _LOCAL, days=_LIFETIME.days)))
    return certificate_path, key_path


def self_signed(
    key: Key,
    subject: str,
    names: Sequence[x509.GeneralName] = (),
    *,
    starts: float = -1.0,
    days: float,
    authority: bool = True,
) -> x509.Certificate:
    """A certificate of `subject`. `names`: alternative ones, the subject's where there are none.

    `starts` and `days`: when it begins and ends to be valid, in days from now; as a rule it begins a day ago, because
    the clocks of a machine and its containers differ. `authority`: whether it says of itself that it is one.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=starts))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names or [x509.DNSName(subject)]), critical=False)
    )
    if authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.sign(key, hashes.SHA256())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as files have it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Key, passphrase: bytes | None = None) -> bytes:
    """A private key as files have it (PKCS #8)."""
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
