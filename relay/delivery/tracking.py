"""Tracked links and the open image, spliced into the HTML of one mail: all else stays as it is (contract section 7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import orjson
import structlog

from config.settings import Settings
from relay.core.address import BadAddress, normalise_domain
from relay.core.tracking_token import LONGEST_PAYLOAD, TrackingTokens
from relay.delivery.content import PIECE
from relay.delivery.html_links import BodyEnd, Link, UsualLinks, links, unescape
from relay.delivery.mailbox import address_of
from relay.delivery.row import OutgoingEmail
from relay.postgres.sending_facts import SendingDomain

log = structlog.get_logger(__name__)

#: Pieces of a document, what comes behind each, and then the token; none: there is neither.
Spliced: TypeAlias = tuple[Sequence[bytes], bytes, Sequence[bytes]]

_MARKER: Final = b"data-opensend-open-tracking"
#: What URL parsers leave out of a link wherever it stands (WHATWG URL, section 4.4).
_DROPPED: Final = str.maketrans("", "", "\t\r\n")
#: What they leave out at its ends.
_STRIPPED: Final = "".join(map(chr, range(0x21)))
#: Octets of a link that is tracked, at most: no browser takes a longer one.
_LONGEST_LINK: Final = 32_768
#: Links whose tokens are made at a time, at least.
_TOGETHER: Final = 64
#: What the path of a tracked link begins with.
_OWN: Final = "/api/track/"
_OWN_OCTETS: Final = _OWN.encode()
#: What links that are tracked begin with.
_SCHEMES: Final = ("http://", "https://")


class Tracking:
    """Makes tracked HTML. `secret`: TRACKING_SECRET; `base`: scheme and host of links, where a domain names none."""

    def __init__(self, secret: str, base: str | None) -> None:
        self._tokens = TrackingTokens(secret)
        self._base = base

    def rewrite(self, email: OutgoingEmail, domain: SendingDomain | None, html: bytes) -> Iterator[Spliced] | None:
        """The HTML that leaves; None where nothing is tracked. `html`: that of the row, as UTF-8.

        In pieces and tokens, in order: see Spliced.
        """
        if domain is None or not html or not email.user_id or not (domain.track_clicks or domain.track_opens):
            return None
        base = self._base_of(domain)
        if base is None:
            return None
        about = {"userId": email.user_id, "emailId": email.id, "domainId": str(domain.id)}
        if len(email.to) == 1 and not email.cc and not email.bcc:
            about["recipient"] = address_of(email.to[0])
        return self._spliced(html, domain, base, about)

    def _spliced(self, html: bytes, domain: SendingDomain, base: str, about: dict[str, str]) -> Iterator[Spliced]:
        image_due = domain.track_opens and _MARKER not in html
        # What stands before the target in the payload of each link, and before the token in the link.
        begin = orjson.dumps({"v": 1, "kind": "click", **about})[:-1] + b',"targetUrl":'
        link = f"{base}/api/track/click/".encode()
        splicing = _Splicing(html)
        spans: list[tuple[int, int]] = []
        payloads: list[bytes] = []
        # Where no body ends the document does.
        for found in chain(links(html), (BodyEnd(len(html)),)):
            if isinstance(found, BodyEnd):
                opens = [orjson.dumps({"v": 1, "kind": "open", **about})] if image_due else []
                image_due = False
                if not payloads and not opens:
                    continue
                tokens = self._tokens.sealed(payloads + opens)
                yield from splicing.put(link, spans, tokens[: len(spans)])
                if opens:
                    image = f'<img src="{base}/api/track/open/'.encode()
                    yield from splicing.put(image, [(found.start, found.start)], tokens[-1:])
                    splicing.ahead = b'" width="1" height="1" alt="" %b="true">' % _MARKER
                spans, payloads = [], []
            elif domain.track_clicks:
                more, made = _payloads(html, found, begin)
                spans += more
                payloads += made
                if len(spans) >= _TOGETHER:
                    yield from splicing.put(link, spans, self._tokens.sealed(payloads))
                    spans, payloads = [], []
        yield from splicing.rest()

    def _base_of(self, domain: SendingDomain) -> str | None:
        subdomain = (domain.tracking_subdomain or "").strip().strip(".")
        if not subdomain:
            return self._base
        try:
            return f"https://{normalise_domain(subdomain if '.' in subdomain else f'{subdomain}.{domain.name}')}"
        except BadAddress:
            return self._base


def base_of(*candidates: str | None) -> str | None:
    """Scheme, host and port of the first of these URLs that is set; None where none is one."""
    for candidate in candidates:
        if candidate:
            parts = urlsplit(candidate)
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else None
    return None


def base_of_links(settings: Settings) -> str | None:
    """What tracked links begin with where a domain names no host; None where no setting says it."""
    vercel = f"https://{settings.vercel_url}" if settings.vercel_url else None
    return base_of(settings.tracking_base_url, settings.next_public_app_url, settings.app_url, vercel)


def tracking_of(settings: Settings) -> Tracking | None:
    """What these settings say; None where nothing is tracked."""
    if settings.tracking_secret is None:
        return None
    base = base_of_links(settings)
    if base is None:
        log.warning("links_without_a_base", note="only domains with a tracking subdomain are tracked")
    return Tracking(settings.tracking_secret.strip(), base)


def _payloads(html: bytes, found: UsualLinks | Link, begin: bytes) -> tuple[Sequence[tuple[int, int]], list[bytes]]:
    """Where links stand that are to be tracked, and the payload of each. `begin`: what stands before a target."""
    if isinstance(found, UsualLinks):
        # perf: 0.2 µs instead of 0.8 µs for each of 40 links of which nothing but `&amp;` is to be decoded:
        # python -m timeit -s 'from relay.delivery.tracking import _payloads, UsualLinks as L' \
        # -s 'h = b"https://x.example/?a&amp;b"; l = L([(0, len(h))] * 40)' '_payloads(h, l, b"p" * 99)'
        octets = b"\n".join([html[start:end] for start, end in found.spans])
        plain = octets.replace(b"&amp;", b"&")
        short = len(octets) <= _LONGEST_LINK and len(begin) + len(octets) + 2 < LONGEST_PAYLOAD
        if short and len(octets) - len(plain) == 4 * octets.count(b"&") and _OWN_OCTETS not in plain:
            # JSON has no line end in it.
            together = b'%b"%b"}' % (begin, plain.replace(b"\n", b'"}\n%b"' % begin))
            return found.spans, together.split(b"\n")
        candidates = found.spans
    else:
        candidates = () if found.left_alone else ((found.start, found.end),)
    spans: list[tuple[int, int]] = []
    payloads: list[bytes] = []
    for start, end in candidates:
        target = _target(html[start:end]) if end - start <= _LONGEST_LINK else None
        if target is not None and len(begin) + len(target) < LONGEST_PAYLOAD:
            spans.append((start, end))
            payloads.append(b"%b%b}" % (begin, target))
    return spans, payloads


def _target(href: bytes) -> bytes | None:
    """The URL that a link leads to, as JSON, where it is to be tracked; else None."""
    target = unescape(href.decode("utf-8", "replace"))
    if not target.isprintable():
        target = target.translate(_DROPPED)
    target = target.strip(_STRIPPED)
    if not target[:8].lower().startswith(_SCHEMES):
        return None
    if "unsubscribe" in target.lower():
        return None
    if not (target.isascii() and "[" not in target and "]" not in target and _OWN not in target):
        # One that may not be one that can be split, or may have a path of ours.
        try:
            path = urlsplit(target).path
        except ValueError:
            return None
        if path.startswith(_OWN):
            return None
    return orjson.dumps(target)


class _Splicing:
    """A document, copied as far as something has been put into it."""

    def __init__(self, html: bytes) -> None:
        self._html = html
        self._copied = 0
        #: What stands ahead of what is copied next.
        self.ahead = b""

    def put(self, before: bytes, spans: Sequence[tuple[int, int]], tokens: Sequence[bytes]) -> Iterator[Spliced]:
        """Puts `before` and a token in the place of each of these parts of the document."""
        if spans and spans[-1][0] - self._copied <= PIECE:
            starts = [self._copied, *[end for _, end in spans]]
            self._copied = starts[-1]
            html = self._html
            texts = [html[start:end] for start, (end, _) in zip(starts, spans)]  # noqa: B905 - one more
            texts[0] = self.ahead + texts[0]
            self.ahead = b""
            yield texts, before, tokens
            return
        for (start, end), token in zip(spans, tokens, strict=True):
            yield from self._copy(start)
            self._copied = end
            yield (b"",), before, (token,)

    def rest(self) -> Iterator[Spliced]:
        """What is left of the document."""
        yield from self._copy(len(self._html))

    def _copy(self, end: int) -> Iterator[Spliced]:
        """Up to there, in pieces: the whole may be large, and there is no room for a second one."""
        yield (self.ahead,), b"", ()
        self.ahead = b""
        for start in range(self._copied, end, PIECE):
            yield (self._html[start : min(end, start + PIECE)],), b"", ()
