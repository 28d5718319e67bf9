"""Tracked HTML: links and one image are spliced in, and nothing else changes (contract section 7)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from relay.core.tracking_token import LONGEST_PAYLOAD, LONGEST_TOKEN
from relay.delivery import tracking as tracking_module
from relay.delivery.content import SEAM, Woven, octets_of, woven
from relay.delivery.html_links import BodyEnd, Link, UsualLinks, links
from relay.delivery.row import OutgoingEmail
from relay.delivery.tracking import Tracking, base_of
from relay.postgres.sending_facts import SendingDomain
from tests.unit.delivery.test_compose import row

SECRET = "a secret of sixteen"
TRACKING = Tracking(SECRET, "https://app.example")
DOMAIN = SendingDomain("00000000-0000-4000-8000-000000000001", "us-east-1", None, True, False, None, "example.com")
OPENS = SendingDomain("00000000-0000-4000-8000-000000000001", "us-east-1", None, False, True, None, "example.com")
LINK = re.compile(r"https://app\.example/api/track/(click|open)/([\w.-]+)")


def rewritten(tracking: Tracking, email: OutgoingEmail, domain: SendingDomain) -> str | None:
    pieces = tracking.rewrite(email, domain, email.html.encode())
    return None if pieces is None else octets_of(woven(pieces)).decode()


def tracked(html: str, domain: SendingDomain = DOMAIN, **columns: Any) -> str:
    return rewritten(TRACKING, row(html=html, **columns), domain) or ""


def payload(token: str) -> dict[str, Any]:
    """What a token says, read as the contract has it."""
    encoded, _, signature = token.partition(".")
    expected = hmac.digest(SECRET.encode(), f"opensend.tracking.v1:{encoded}".encode(), "sha256")
    assert base64.urlsafe_b64decode(signature + "=") == expected
    octets = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    iv, tag, sealed = octets[:12], octets[12:28], octets[28:]
    key = hashlib.sha256(SECRET.encode()).digest()
    document: dict[str, Any] = json.loads(AESGCM(key).decrypt(iv, sealed + tag, b"opensend.tracking.v1"))
    return document


def restored(html: str) -> str:
    """Tracked HTML with each tracked link put back as its target, and the image taken out."""
    html = re.sub(r'<img src="https://app\.example/api/track/open/[^>]*>', "", html)
    return LINK.sub(lambda match: payload(match[2])["targetUrl"], html)


@pytest.mark.parametrize(
    "html",
    [
        '<p>ä</p><A  HREF = "https://x.example/a?b=1#c" class=x>go</A>',
        "<a href='http://x.example'>go</a>",
        "<a href=https://x.example/a>go</a>",
        '<a\nhref="https://x.example/?href=https://y.example">go</a>',
        '<!--[if mso]><a href="https://x.example/o">go</a><![endif]-->',
        '<a title="a > b" href="https://x.example/t">go</a>',
        '<a href="HTTPS://x.example/U">go</a>',
        '<div data-x="<a href=\'https://no.example\'>"></div><a href="https://x.example/y">go</a>',
    ],
)
def test_a_link_is_tracked_and_all_else_stays(html: str) -> None:
    result = tracked(html)
    assert len(LINK.findall(result)) == 1
    assert restored(result) == html


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_nothing_is_lost_where_a_piece_ends(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_module, "PIECE", piece)
    for size in range(70):
        html = f'<p>{"a" * size}</p><a href="https://x.example/{"b" * size}">go</a>{"c" * size}</body>{"d" * size}'
        for domain in (DOMAIN, OPENS):
            assert restored(tracked(html, domain)) == html, (size, domain)


@pytest.mark.parametrize("links_before", [0, 1])
def test_no_large_part_of_a_document_is_copied_at_a_time(links_before: int) -> None:
    between = "x" * (2 * tracking_module.PIECE)
    html = _link(0) * links_before + "".join(between + _link(number) for number in range(4)) + between
    email = row(html=html)
    spliced = list(TRACKING.rewrite(email, DOMAIN, html.encode()) or ())
    assert max(sum(map(len, texts)) for texts, *_ in spliced) <= 1.1 * tracking_module.PIECE
    assert restored(octets_of(woven(spliced)).decode()) == html


def test_what_stands_behind_a_token_is_never_what_a_line_must_not_begin_with() -> None:
    """Quoted-printable puts it at the begin of a line (`relay.delivery.content.Woven`)."""
    source = random.Random(24)
    pieces = (
        "<a href=",
        "https://x.example",
        "<p",
        ">",
        '"',
        "'",
        ".",
        "From ",
        "F",
        " ",
        "/",
        "<!--[if mso]>",
        "<![endif]-->",
    )
    usual = (
        '<a href="https://x.example">',
        "<a href=https://x.example>",
        "<a href='https://x.example'F>",
        "</body>",
        ".",
        "F",
    )
    domain = SendingDomain("00000000-0000-4000-8000-000000000001", "us-east-1", None, True, True, None, "example.com")
    tokens = 0
    for _ in range(4_000):
        html = "".join(source.choices(pieces + usual, k=source.randrange(1, 15)))
        content = woven(TRACKING.rewrite(row(html=html), domain, html.encode()) or ())
        if isinstance(content, Woven):
            tokens += len(content.tokens)
            assert not re.search(SEAM + rb"[.F]", content.octets), html
    assert tokens > 4_000


def test_references_in_a_link_are_decoded() -> None:
    ((_, token),) = LINK.findall(tracked('<a href="https://x.example/?a=1&amp;b=2&#38;c=3">go</a>'))
    assert payload(token)["targetUrl"] == "https://x.example/?a=1&b=2&c=3"


@pytest.mark.parametrize(
    "html",
    [
        '<a href="mailto:a@x.example">m</a>',
        '<a href="tel:+49">t</a>',
        '<a href="#top">t</a>',
        '<a href="/relative">t</a>',
        '<a href="app://deep/link">t</a>',
        '<a href="javascript:alert(1)">t</a>',
        '<a name="https://x.example">t</a>',
        '<a href="https://x.example/Unsubscribe?u=1">t</a>',
        '<a href="https://x.example/&#117;nsubscribe">t</a>',
        '<a class="UNSUBSCRIBE" href="https://x.example">t</a>',
        '<a clicktracking="off" href="https://x.example">t</a>',
        '<a clicktracking=off href="https://x.example">t</a>',
        '<a href="https://y.example/api/track/click/abc">t</a>',
        '<textarea><a href="https://x.example">t</a></textarea>',
        "<script>\"<a href='https://x.example'>\"</script>",
        '<style><a href="https://x.example"></style>',
        '<template><a href="https://x.example">t</a></template>',
        '<!-- <a href="https://x.example">t</a> -->',
        '<area href="https://x.example">',
        '<a href="https://x.example>unclosed',
        "plain text < a href=https://x.example",
        "<a href>x</a>",
        "<a",
        "<",
        "",
    ],
)
def test_what_is_no_tracked_link_stays(html: str) -> None:
    assert tracked(html) in (html, "")


def test_a_usual_link_is_tracked_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of a link from the search for it changes nothing in what becomes of it."""
    source = random.Random(16)
    words = [
        *map(chr, range(0x21, 0x7F)),
        " ",
        "\x00",
        "\x7f",
        "é",
        "&amp;",
        "&amp;amp;",
        "&lt;",
        "&#91;",
        "&copy=",
        "\t",
    ]
    words += ["/api/track/", "/api/track&amp;/", "unsubscribe", "UNsubscribe", "&#117;nsubscribe", "&quot;", "&", "\\"]
    hrefs = [
        source.choice(["http://", "https://", "HTTPS://", "https:/", " https://", "http://x.example/?"])
        + "".join(source.choices(words, k=source.randrange(9)))
        for _ in range(2_000)
    ]
    hrefs += ["https://x.example/" + "a" * size for size in (32_750, 32_751)]
    documents = [f'<a href="{href}">' for href in hrefs]
    searched = [targets_of(document) for document in documents]
    known = 0

    def forgotten(document: bytes) -> Iterator[Link | BodyEnd]:
        nonlocal known
        for found in links(document):
            if isinstance(found, UsualLinks):
                known += len(found.spans)
                yield from (Link(*span) for span in found.spans)
            else:
                yield found

    monkeypatch.setattr("relay.delivery.tracking.links", forgotten)
    for document, targets in zip(documents, searched, strict=True):
        assert targets_of(document) == targets, document
    assert 300 < known < len(documents)
    assert 300 < sum(map(len, searched)) < len(documents)


def targets_of(document: str) -> list[str]:
    return [payload(match[2])["targetUrl"] for match in LINK.finditer(tracked(document))]


def test_a_token_says_what_the_contract_has() -> None:
    email = row(html='<a href="https://x.example">go</a>')
    ((kind, token),) = LINK.findall(rewritten(TRACKING, email, DOMAIN) or "")
    assert kind == "click"
    assert payload(token) == {
        "v": 1,
        "kind": "click",
        "userId": "user",
        "emailId": email.id,
        "domainId": DOMAIN.id,
        "recipient": "to@x.example",
        "targetUrl": "https://x.example",
    }
    ((_, several),) = LINK.findall(tracked('<a href="https://x.example">go</a>', cc=("cc@x.example",)))
    assert "recipient" not in payload(several)


@pytest.mark.parametrize(
    ("html", "before"),
    [
        ("<p>Hi</p>", ""),
        ("<html><body><p>Hi</p></BODY></html></body>", "</BODY></html></body>"),
        ("<!-- </body> --><p>Hi</p></body>", "</body>"),
    ],
)
def test_the_image_of_opens_stands_before_the_end_of_the_body(html: str, before: str) -> None:
    result = tracked(html, OPENS)
    assert result.endswith(f'data-opensend-open-tracking="true">{before}')
    assert restored(result) == html
    assert rewritten(TRACKING, row(html=result), OPENS) == result  # once


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 200])
@pytest.mark.parametrize("opens", [False, True])
def test_tokens_that_are_made_together_stand_where_each_belongs(count: int, opens: bool) -> None:
    before, behind = "".join(map(_link, range(count // 2))), "".join(map(_link, range(count // 2, count)))
    html = f'<body><a href="#top">{before}<p>x</p></body>{behind}<a href="tel:1"></body>'
    domain = SendingDomain("00000000-0000-4000-8000-000000000001", "us-east-1", None, True, opens, None, "example.com")
    result = tracked(html, domain)
    assert restored(result) == html
    tokens = [token for kind, token in LINK.findall(result) if kind == "click"]
    assert [payload(token)["targetUrl"] for token in tokens] == [f"https://x.example/{n}" for n in range(count)]
    images = [token for kind, token in LINK.findall(result) if kind == "open"]
    assert [payload(token)["kind"] for token in images] == ["open"] * opens
    assert result.count('data-opensend-open-tracking="true"></body>') == opens
    initial = {base64.urlsafe_b64decode(token[:16]) for token in tokens + images}
    assert len(initial) == count + opens  # none is used twice: two of one key would give both texts away


def _link(number: int) -> str:
    return f'<a href="https://x.example/{number}">go</a>'


@pytest.mark.parametrize("more", [0, 1])
def test_a_link_whose_token_would_be_too_long_stays(more: int) -> None:
    path = "a" * 20_000
    html = f'<a href="https://x.example/{path}">go</a>'
    about = {"v": 1, "kind": "click", "userId": "", "emailId": row().id, "domainId": DOMAIN.id}
    about |= {"recipient": "bob@example.com", "targetUrl": f"https://x.example/{path}"}
    user = "u" * (LONGEST_PAYLOAD - len(orjson.dumps(about)) + more)
    result = tracked(html, user_id=user, to=("bob@example.com",))
    tokens = LINK.findall(result)
    assert [len(token) for _, token in tokens] == ([] if more else [LONGEST_TOKEN])


def test_the_base_of_links() -> None:
    assert base_of(None, "", "https://user@h.example:8443/path?x") == "https://h.example:8443"
    assert base_of(None, None) is None
    link = '<a href="https://x.example">go</a>'
    label = SendingDomain("1", "us-east-1", None, True, False, "t", "example.com")
    whole = SendingDomain("1", "us-east-1", None, True, False, "t.other.example", "example.com")
    assert 'href="https://t.example.com/api/track/click/' in tracked(link, label)
    assert 'href="https://t.other.example/api/track/click/' in tracked(link, whole)
    assert rewritten(Tracking(SECRET, None), row(html=link), DOMAIN) is None


class _Links(HTMLParser):
    """What the standard library takes for a link."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(reversed(attrs)).get("href")
        if tag == "a" and href and href.lower().startswith("http"):
            self.links.append(href)


PIECES = [
    '<a href="https://x.example/{}">',
    "</a>",
    "text",
    '<p title=">">',
    "<br/>",
    "<b>",
    "&amp;",
    "<!-- c -->",
    "\n",
]


def test_links_are_those_of_another_parser() -> None:
    source = random.Random(7)
    for number in range(300):
        html = "".join(source.choice(PIECES).format(number) for _ in range(source.randrange(1, 30)))
        reader = _Links()
        reader.feed(html)
        result = tracked(html)
        assert [payload(token)["targetUrl"] for _, token in LINK.findall(result)] == reader.links
        assert restored(result) == html


@pytest.mark.parametrize(
    "unit",
    ["<a ", "<a href=", "<", "<!--", "<!--[if", "<script>", "</", '<a href="', "<a x=' ", "<textarea>", " ", "<a/"],
)
def test_work_is_linear(unit: str) -> None:
    """Counted in calls of the scanner's matches, which time with noise could not show."""

    def work(size: int) -> int:
        count = 0

        def trace(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal count
            count += event in ("c_call", "call")

        sys.setprofile(trace)
        try:
            tracked(unit * (size // len(unit)))
        finally:
            sys.setprofile(None)
        return count

    assert work(80_000) <= 2.5 * work(40_000) + 200
