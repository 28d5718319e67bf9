"""The secrets that webhooks are signed with, as OpenSend stores them (contract section 9)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_PREFIX: Final = "v1."
_SALT: Final = b"opensend.webhook-secret.v1"
_KEY_OCTETS: Final = 32
_IV_OCTETS, _TAG_OCTETS = 12, 16
_HEX_KEY: Final = re.compile(r"[0-9A-Fa-f]{64}")
_NOT_BASE64: Final = re.compile(r"[^A-Za-z0-9+/]")


class UnreadableSecretError(Exception):
    """A secret that this key does not open. Nothing may be sent without its signature."""


class WebhookSecrets:
    """Opens stored secrets with the key of WEBHOOK_SECRET_ENCRYPTION_KEY; None: there is no key."""

    def __init__(self, material: str | None) -> None:
        # scrypt takes 16 MB and some 50 ms: once, at the start.
        self._cipher = None if material is None else AESGCM(key_of(material))

    def open(self, stored: str | None) -> str:
        """The secret's text. Raises UnreadableSecretError.

        `stored`: `v1.<iv>.<ciphertext>.<tag>`, each base64url. Where there is nothing, or anything else, the text is
        empty.
        """
        if stored is None or not stored.startswith(_PREFIX):
            return ""
        if self._cipher is None:
            raise UnreadableSecretError("no key")
        try:
            iv, ciphertext, tag = (_base64url(part) for part in stored.split(".")[1:])
            if len(iv) != _IV_OCTETS or len(tag) != _TAG_OCTETS:
                raise UnreadableSecretError("not the form of a secret")
            return self._cipher.decrypt(iv, ciphertext + tag, None).decode("utf-8", "replace")
        except (ValueError, InvalidTag):
            raise UnreadableSecretError("another key, or not the form of a secret") from None


def key_of(material: str) -> bytes:
    """The 32 octets of a key: 64 hex digits, Base64 of 32 octets in either alphabet, else scrypt of the text."""
    if _HEX_KEY.fullmatch(material):
        return bytes.fromhex(material)
    # As Node reads Base64: of either alphabet, padded or not, up to the first padding; what is of neither is skipped.
    digits = _NOT_BASE64.sub("", material.partition("=")[0].replace("-", "+").replace("_", "/"))
    if len(digits) * 6 // 8 == _KEY_OCTETS:
        return base64.b64decode(digits + "A" * (-len(digits) % 4))[:_KEY_OCTETS]
    return hashlib.scrypt(material.encode(), salt=_SALT, n=16384, r=8, p=1, dklen=_KEY_OCTETS, maxmem=1 << 26)


def _base64url(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError from error
