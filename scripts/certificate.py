"""A certificate for localhost, signed by itself, so that STARTTLS and AUTH work on a development machine."""

from __future__ import annotations

if not __package__:
    raise SystemExit("This is a part of ./scripts/dev, and no command.")

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    certificate_path.write_bytes(_signed(key).public_bytes(serialization.Encoding.PEM))
    return certificate_path, key_path


def _signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    alternatives = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # the clocks of a machine and its containers differ
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
