"""Certificates for tests, in every state that one can be in."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from scripts.certificate import certificate_pem, key_pem, self_signed


def write_pair(
    directory: Path, *, name: str = "localhost", days: float = 365, starts: float = -1, passphrase: bytes | None = None
) -> tuple[str, str]:
    """Paths of a new self-signed certificate and its key; `starts` and `days` count from now."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = self_signed(key, name, starts=starts, days=days, authority=False)
    cert_path, key_path = directory / "certificate.pem", directory / "key.pem"
    cert_path.write_bytes(certificate_pem(certificate))
    key_path.write_bytes(key_pem(key, passphrase))
    return str(cert_path), str(key_path)
