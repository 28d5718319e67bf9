"""Tracked links and the open image in the HTML of one mail (contract section 7), spliced in: all else stays as it is.

A scanner of tags and attributes in the way of HTML's tokenizer, in one pass: a parser that writes the document anew
would change case, quotes, line ends and references. Linear: each search that finds nothing ends the scan.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from html import unescape
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from relay.core.frozen import frozen
from relay.delivery.compose import address_of
from relay.delivery.row import OutgoingEmail
from relay.postgres.outgoing import SendingDomain

#: What is authenticated with each token, and begins what is signed.
CONTEXT: Final = b"opensend.tracking.v1"
_MARKER: Final = "data-opensend-open-tracking"
_NAME: Final = re.compile(r"[A-Za-z][^\s/>]*")
_BLANKS: Final = re.compile(r"[\s/]*")
_SPACES: Final = re.compile(r"\s*")
_ATTRIBUTE: Final = re.compile(r"=?[^\s/>=]*")
_UNQUOTED: Final = re.compile(r"[^\s>]*")
#: Elements whose content is text for the tokenizer, or is not shown.
_OPAQUE: Final = frozenset(
    ("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes", "noscript", "template", "svg")
)
_CLOSE: Final = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _OPAQUE}
#: What URL parsers leave out of a link wherever it stands (WHATWG URL, section 4.4).
_DROPPED: Final = str.maketrans("", "", "\t\r\n")


@frozen
class _Attribute:
    """An attribute of a start tag; `start` and `end` are where its value stands in the document."""

    name: str
    value: str
    start: int
    end: int


class Tracking:
    """Makes tracked HTML. `secret`: TRACKING_SECRET; `base`: scheme and host of links, where a domain names none."""

    def __init__(self, secret: str, base: str | None) -> None:
        self._key = hashlib.sha256(secret.encode()).digest()
        self._secret = secret.encode()
        self._base = base

    def rewrite(self, email: OutgoingEmail, domain: SendingDomain | None) -> str | None:
        """The HTML that leaves; None where nothing is tracked."""
        if domain is None or not email.html or not email.user_id or not (domain.track_clicks or domain.track_opens):
            return None
        base = self._base_of(domain)
        if base is None:
            return None
        about = {"userId": email.user_id, "emailId": email.id, "domainId": str(domain.id)}
        if len(email.to) == 1 and not email.cc and not email.bcc:
            about["recipient"] = address_of(email.to[0])
        scan = _Scan(email.html)
        links = list(scan.links())
        pieces: list[str] = []
        copied = 0
        if domain.track_clicks:
            for link in links:
                target = tracked_target(link)
                if target is not None:
                    token = self.token({"v": 1, "kind": "click", **about, "targetUrl": target})
                    pieces += (email.html[copied : link.start], f"{base}/api/track/click/{token}")
                    copied = link.end
        if domain.track_opens and _MARKER not in email.html:
            at = len(email.html) if scan.body_end is None else scan.body_end
            token = self.token({"v": 1, "kind": "open", **about})
            image = f'<img src="{base}/api/track/open/{token}" width="1" height="1" alt="" {_MARKER}="true">'
            # Links behind </body> are rare: they stay as they are rather than in another order.
            if at >= copied:
                pieces += (email.html[copied:at], image)
                copied = at
        pieces.append(email.html[copied:])
        return "".join(pieces)

    def token(self, payload: dict[str, Any]) -> str:
        """A token of contract section 7 for this payload."""
        iv = os.urandom(12)
        sealed = AESGCM(self._key).encrypt(iv, orjson.dumps(payload), CONTEXT)
        # The library puts the tag behind the ciphertext, the contract before it.
        encoded = _base64url(iv + sealed[-16:] + sealed[:-16])
        signature = hmac.digest(self._secret, CONTEXT + b":" + encoded, "sha256")
        return f"{encoded.decode()}.{_base64url(signature).decode()}"

    def _base_of(self, domain: SendingDomain) -> str | None:
        subdomain = (domain.tracking_subdomain or "").strip().strip(".")
        if subdomain:
            return f"https://{subdomain if '.' in subdomain else f'{subdomain}.{domain.name}'}"
        return self._base


def base_of(*candidates: str | None) -> str | None:
    """Scheme, host and port of the first of these URLs that is set; None where none is one."""
    for candidate in candidates:
        if candidate:
            parts = urlsplit(candidate)
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else None
    return None


@frozen
class _Link:
    """A start tag <a> with its href, as far as tracking asks."""

    href: str
    start: int
    end: int
    #: Whether any attribute asks to be left alone.
    left_alone: bool


def tracked_target(link: _Link) -> str | None:
    """The URL that a link leads to where it is to be tracked, else None."""
    if link.left_alone:
        return None
    target = unescape(link.href).translate(_DROPPED).strip(" \x00\x0c")
    if not target[:8].lower().startswith(("http://", "https://")):
        return None
    try:
        path = urlsplit(target).path
    except ValueError:
        return None
    return None if path.startswith("/api/track/") or "unsubscribe" in target.lower() else target


class _Scan:
    """One pass over a document."""

    def __init__(self, document: str) -> None:
        self._document = document
        #: Where the first `</body` stands, once `links` has been gone through.
        self.body_end: int | None = None

    def links(self) -> Iterator[_Link]:
        """Every <a> with an href, in order, those in Outlook's conditional comments too."""
        document = self._document
        position = 0
        while (position := document.find("<", position)) >= 0:
            if document.startswith("<!--", position):
                # A conditional comment is a document for Outlook; any other is nobody's.
                conditional = document[position + 4 : position + 7].lower() == "[if"
                end = document.find(">" if conditional else "-->", position + 4)
                if end < 0:
                    return
                position = end + 1
                continue
            following = document[position + 1 : position + 2]
            if following == "/":
                if self.body_end is None and document[position : position + 6].lower() == "</body":
                    self.body_end = position
                position += 2
                continue
            name = _NAME.match(document, position + 1)
            if name is None:
                position += 1
                continue
            element = name[0].lower()
            attributes: list[_Attribute] = []
            position = self._attributes(name.end(), attributes)
            if position < 0:
                return
            if element == "a":
                link = _link(attributes)
                if link is not None:
                    yield link
            elif element in _OPAQUE:
                close = _CLOSE[element].search(document, position)
                if close is None:
                    return
                position = close.start()

    def _attributes(self, position: int, found: list[_Attribute]) -> int:
        """Reads the attributes of a start tag; where it ends, or -1 where the document ends first."""
        document = self._document
        while True:
            position = _BLANKS.match(document, position).end()  # type: ignore[union-attr]  # it matches anywhere
            if position >= len(document):
                return -1
            if document[position] == ">":
                return position + 1
            match = _ATTRIBUTE.match(document, position)
            assert match is not None  # noqa: S101 - it matches the empty text too
            name, position = match[0].lower(), match.end()
            behind = _SPACES.match(document, position).end()  # type: ignore[union-attr]
            if document[behind : behind + 1] != "=":
                found.append(_Attribute(name, "", position, position))
                continue
            position = _SPACES.match(document, behind + 1).end()  # type: ignore[union-attr]
            quote = document[position : position + 1]
            if quote in ('"', "'"):
                end = document.find(quote, position + 1)
                if end < 0:
                    return -1
                found.append(_Attribute(name, document[position + 1 : end], position + 1, end))
                position = end + 1
            else:
                end = _UNQUOTED.match(document, position).end()  # type: ignore[union-attr]
                found.append(_Attribute(name, document[position:end], position, end))
                position = end


def _link(attributes: list[_Attribute]) -> _Link | None:
    """The link of a tag with these attributes. Of two of one name the first counts, as in browsers."""
    href = next((attribute for attribute in attributes if attribute.name == "href"), None)
    if href is None:
        return None
    left_alone = any(
        "unsubscribe" in attribute.name
        or "unsubscribe" in attribute.value.lower()
        or (attribute.name == "clicktracking" and attribute.value.strip().lower() == "off")
        for attribute in attributes
    )
    return _Link(href.value, href.start, href.end, left_alone)


def _base64url(octets: bytes) -> bytes:
    return base64.urlsafe_b64encode(octets).rstrip(b"=")
