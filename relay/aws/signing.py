"""Signatures of AWS calls (Signature Version 4), with the key of a day computed once.

botocore signs as well, and takes six times the CPU: it parses the URL, sorts and joins header objects, and derives the
key anew for each call. The signature is the same one, octet by octet (tests/unit/aws/test_signing.py).
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

from botocore.utils import normalize_url_path

_ALGORITHM: Final = "AWS4-HMAC-SHA256"


class Keys(NamedTuple):
    """Credentials, all of one moment: printable ASCII. `token` is that of a session; empty: there is none."""

    access_key: str
    secret_key: str
    token: str


class Signer:
    """Signs calls to one path of one service without a query. `service`: its name in signatures, such as `ses`."""

    def __init__(self, service: str, region: str, path: str) -> None:
        self._scope = f"{region}/{service}/aws4_request"
        self._names = region, service, "aws4_request"
        # As botocore has it for all services but S3: the path in a URL is encoded once more.
        self._path = quote(normalize_url_path(path), safe="/~")
        #: Key, date and secret that it was made for.
        self._key: tuple[bytes, str, str] = (b"", "", "")

    def signed(self, keys: Keys, method: str, fields: Mapping[str, str], digest: str) -> dict[str, str]:
        """The header fields of a call with its signature among them.

        `fields`: all others, each name once, ASCII; all of them are signed, so Host has to be among them. `digest`: the
        body's SHA-256 in lower-case hex.
        """
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        headers = {**fields, "X-Amz-Content-SHA256": digest, "X-Amz-Date": moment}
        if keys.token:
            headers["X-Amz-Security-Token"] = keys.token
        canonical = sorted([(name.lower(), " ".join(value.split())) for name, value in headers.items()])
        names = ";".join([name for name, _ in canonical])
        lines = "".join([f"{name}:{value}\n" for name, value in canonical])
        request = f"{method}\n{self._path}\n\n{lines}\n{names}\n{digest}"
        date = moment[:8]
        text = f"{_ALGORITHM}\n{moment}\n{date}/{self._scope}\n{sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key_of(keys.secret_key, date), text.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"{_ALGORITHM} Credential={keys.access_key}/{date}/{self._scope}, SignedHeaders={names},"
            f" Signature={signature}"
        )
        return headers

    def _key_of(self, secret: str, date: str) -> bytes:
        key, of_date, of_secret = self._key
        if date != of_date or secret != of_secret:
            key = f"AWS4{secret}".encode()
            for text in (date, *self._names):
                key = hmac.digest(key, text.encode(), "sha256")
            self._key = key, date, secret
        return key
