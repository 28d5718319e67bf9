"""Whatever is in the files of certificate and key, the reason is in words and names the file that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.server.certificate import CertificateError, CertificateStore
from tests.support.certificates import write_pair

CERT, KEY = "SMTP_RELAY_TLS_CERT_PATH", "SMTP_RELAY_TLS_KEY_PATH"
BLOCK = b"-----BEGIN %(kind)s-----\nAAAA\n-----END %(kind)s-----\n"
#: What is made of a good pair, and the variable that is to be named first.
DAMAGES: dict[str, tuple[str, Callable[[bytes, bytes], tuple[bytes, bytes]]]] = {
    "no certificate": (CERT, lambda _, key: (b"", key)),
    "a certificate of zeros": (CERT, lambda _, key: (BLOCK % {b"kind": b"CERTIFICATE"}, key)),
    "a cut certificate": (CERT, lambda cert, key: (cert[: len(cert) // 2], key)),
    "a certificate without an end": (CERT, lambda cert, key: (cert.replace(b"-----END CERTIFICATE-----", b""), key)),
    "a certificate with other letters": (CERT, lambda cert, key: (cert.replace(b"M", b"!", 3), key)),
    "a comment": (CERT, lambda _, key: (b"# -----BEGIN CERTIFICATE-----\n", key)),
    "a chain with a damaged one": (CERT, lambda cert, key: (cert + BLOCK % {b"kind": b"CERTIFICATE"}, key)),
    "a key in place of the certificate": (CERT, lambda _, key: (key, key)),
    "both in each other's place": (CERT, lambda cert, key: (key, cert)),
    "a request": (CERT, lambda _, key: (BLOCK % {b"kind": b"CERTIFICATE REQUEST"}, key)),
    "UTF-16": (CERT, lambda cert, key: (cert.decode().encode("utf-16"), key)),
    "octets": (CERT, lambda cert, key: (bytes(range(256)), key)),
    "no key": (KEY, lambda cert, _: (cert, b"")),
    "a cut key": (KEY, lambda cert, key: (cert, key[: len(key) // 2])),
    "a key of zeros": (KEY, lambda cert, _: (cert, BLOCK % {b"kind": b"PRIVATE KEY"})),
    "a public key": (KEY, lambda cert, _: (cert, BLOCK % {b"kind": b"PUBLIC KEY"})),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    cert, key = write_pair(tmp_path_factory.mktemp("pair"))
    return Path(cert).read_bytes(), Path(key).read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_file_that_is_damaged_is_named_in_words(damage: str, pair: tuple[bytes, bytes], tmp_path: Path) -> None:
    variable, of = DAMAGES[damage]
    paths = [tmp_path / name for name in ("certificate", "key")]
    for path, octets in zip(paths, of(*pair), strict=True):
        path.write_bytes(octets)
    with pytest.raises(CertificateError) as refused:
        CertificateStore(*map(str, paths))
    said = str(refused.value)
    assert said.startswith(f"{variable} is ")
    assert not re.search(r"\b[A-Za-z]*Error\b|\b(?!SMTP_RELAY)[A-Z]+_[A-Z_]+\b", said)
