"""Messages with long runs in them: every place where a client's value may stand, filled with repetitions.

    python -m tests.security.long_messages [--octets 16000] [--shards 2 --shard 0]

reads all of them, in every combination, and names those whose time grows faster than their length; the suite reads a
part. Time is CPU time: what runs beside it doesn't count.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from relay.mail import Unusable, parse

_HEAD: Final = "From: a@b.example\r\n"
_MULTIPART: Final = _HEAD + "Content-Type: multipart/mixed; boundary=b\r\n\r\n"


def _body(fields: str) -> str:
    return f"{_HEAD}{fields}\r\n\r\n%s"


#: Where a value may stand: `%s` is the value, `%%` a per cent sign.
VALUES: Final = {
    **{
        name: f"{_HEAD}{name}: %s\r\n\r\nx"
        for name in (
            *("To", "Cc", "Reply-To", "Sender", "Subject", "Message-ID", "References", "Date", "MIME-Version", "X-Own"),
            *(
                "Content-Type",
                "Content-Transfer-Encoding",
                "Content-Disposition",
                "Content-ID",
                "List-Id",
                "Importance",
            ),
            *("X-OpenSend-Tag", "Idempotency-Key", "User-Agent", "List-Unsubscribe-Post"),
        )
    },
    "From": "From: %s <a@b.example>\r\n\r\nx",
    "From alone": "From: %s\r\n\r\nx",
    "local part": _HEAD + "To: %s@b.example\r\n\r\nx",
    "domain": _HEAD + "To: a@%s.example\r\n\r\nx",
    "domain that is not ASCII": _HEAD + "To: a@\xc3\xbc%s.example\r\n\r\nx",
    "domain in From": "From: a@%s.example\r\n\r\nx",
    "angles": _HEAD + "To: x <%s> y\r\n\r\nx",
    "quoted name": _HEAD + 'To: "%s" <c@d.example>\r\n\r\nx',
    "comment in an address": _HEAD + "To: c@d.example (%s)\r\n\r\nx",
    "group": _HEAD + "To: g: %s;\r\n\r\nx",
    "encoded name": _HEAD + "To: =?utf-8?q?%s?= <c@d.example>\r\n\r\nx",
    "Q word": _HEAD + "Subject: =?utf-8?q?%s?=\r\n\r\nx",
    "B word": _HEAD + "Subject: =?utf-8?b?%s?=\r\n\r\nx",
    "words in X-Own": _HEAD + "X-Own: =?utf-8?q?=e4?= %s\r\n\r\nx",
    "name of a field": _HEAD + "X-%s: y\r\n\r\nx",
    "media type": _HEAD + "Content-Type: text/%s\r\n\r\nx",
    "comment in Content-Type": _HEAD + "Content-Type: text/plain (%s)\r\n\r\nx",
    "charset": _HEAD + "Content-Type: text/plain; charset=%s\r\n\r\n\xe4",
    "charset in quotes": _HEAD + 'Content-Type: text/plain; charset="%s"\r\n\r\n\xe4',
    "charset of an encoded word": _HEAD + "Subject: =?%s?q?=e4?=\r\n\r\nx",
    "charset of a parameter": _HEAD + "Content-Disposition: attachment; filename*=%s''%%e4\r\n\r\nx",
    "charset in many spellings": _HEAD + "Content-Type: text/plain; charset=latin-1%s\r\n\r\n\xe4",
    "boundary": _HEAD + "Content-Type: multipart/mixed; boundary=%s\r\n\r\n--%s\r\n\r\nx\r\n--%s--\r\n",
    "boundary in quotes": _HEAD + 'Content-Type: multipart/mixed; boundary="%s"\r\n\r\n--%s\r\n\r\nx\r\n',
    "parameter name": _HEAD + "Content-Type: text/plain; %s=x\r\n\r\nx",
    "parameter": _HEAD + "Content-Type: text/plain; a=%s\r\n\r\nx",
    "parameter of a multipart": _HEAD
    + "Content-Type: multipart/mixed; a=%s; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n",
    "parameters before a boundary": _HEAD
    + "Content-Type: multipart/x; %s; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n",
    "file name": _HEAD + 'Content-Disposition: attachment; filename="%s"\r\n\r\nx',
    "file name in sections": _HEAD + "Content-Disposition: attachment; filename*0*=utf-8''%s\r\n\r\nx",
    "parameter of a part": _MULTIPART + "--b\r\nContent-Type: text/plain; name=%s\r\n\r\nx\r\n--b--\r\n",
    "transfer encoding of a part": _MULTIPART + "--b\r\nContent-Transfer-Encoding: %s\r\n\r\nx\r\n--b--\r\n",
    "field of a part": _MULTIPART + "--b\r\nX-Own: %s\r\n\r\nx\r\n--b--\r\n",
    "Content-Type of a part that flanker reads": (
        _HEAD
        + "Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain; %s\r\n\r\nx\r\n--b--\r\n"
    ),
    "subject of an attached message": (
        _MULTIPART + "--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: %s\r\n\r\nx\r\n--b--\r\n"
    ),
    "begin of uuencode": (
        _HEAD
        + "Content-Type: image/png\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\nbegin 644 %s\r\n#AAAA\r\nend\r\n"
    ),
}
#: Where a run of lines, fields or parts may stand.
BODIES: Final = {
    "header block": _HEAD + "%s\r\n\r\nx",
    "header block before all": "%s\r\nFrom: a@b.example\r\n\r\nx",
    "header block without an end": _HEAD + "%s",
    "text": _body("Content-Type: text/plain"),
    "flowed text": _body("Content-Type: text/plain; format=flowed; delsp=yes"),
    "HTML": _body("Content-Type: text/html"),
    "byte order mark": "\xef\xbb\xbf\r\nFrom: a@b.example\r\n%s\r\n\r\nx",
    "attribute in HTML": _HEAD + "Content-Type: text/html\r\n\r\n<p title=%s>x <a href='http://c.example/'>x</a>",
    "charset in HTML": (
        _HEAD + "Content-Type: text/html\r\n\r\n<meta http-equiv=content-type content='text/html; charset=gb18030%s'>"
        "\xe1\xbb\x81"
    ),
    "HTML beside text": (
        _HEAD
        + "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b\r\nContent-Type: text/html\r\n\r\n"
        "<p>x <a href='http://c.example/'>c.example</a> %s\r\n--b--\r\n"
    ),
    "comment in HTML": _HEAD + "Content-Type: text/html\r\n\r\n<p>x<!-- %s --><p>y",
    "HTML in Base64": _body("Content-Type: text/html\r\nContent-Transfer-Encoding: base64"),
    "quoted-printable": _body("Content-Transfer-Encoding: quoted-printable"),
    "Base64 attachment": _body("Content-Type: image/png\r\nContent-Transfer-Encoding: base64"),
    "uuencoded attachment": _body("Content-Type: image/png\r\nContent-Transfer-Encoding: x-uuencode"),
    "uuencoded text": _body("Content-Transfer-Encoding: x-uuencode"),
    "first line of uuencode": _body("Content-Transfer-Encoding: x-uuencode") + "\r\nbegin 644%s\rX",
    "parts": _MULTIPART + "%s",
    "preamble": _MULTIPART + "%s\r\n--b\r\n\r\nx\r\n--b--\r\n",
    "epilogue": _MULTIPART + "--b\r\n\r\nx\r\n--b--\r\n%s",
    "header block of a part": _MULTIPART + "--b\r\n%s\r\n\r\nx\r\n--b--\r\n",
    "parts of no boundary": _body("Content-Type: multipart/mixed"),
    "alternatives": _body("Content-Type: multipart/alternative; boundary=b"),
    "digest": _body("Content-Type: multipart/digest; boundary=b"),
    "attached message": _body("Content-Type: message/rfc822"),
    "delivery status": _body("Content-Type: message/delivery-status"),
    **{
        label: _body(f"Content-Type: text/plain; charset={label}")
        for label in (
            "iso-2022-jp",
            "utf-7",
            "utf-16",
            "gb18030",
            "shift_jis",
            "big5",
            "hz-gb-2312",
            "iso-2022-kr",
            "euc-kr",
        )
    },
    **{
        f"text in {label}, not ASCII": _body(f"Content-Type: text/plain; charset={label}") + "\xe4"
        for label in ("x", "euc-jp")
    },
    "UTF-8 under another label": _body("Content-Type: text/plain; charset=iso-8859-2") + " \xc4\x84\xc5\x9b",
    "text of no charset": _body("X-Own: x") + "\xe4\x80",
    "text of no charset, as of East Asia": _body("X-Own: x") + " \x82\xa0\x82\xa2\x82\xa4\x82\xa6 \xb4\xeb\xb7\xb8",
}
PLACES: Final = VALUES | BODIES

#: What is repeated; `#` stands for the number of the repetition.
UNITS: Final = (
    *("a", "A", "0", ".", "a.", "-", "a-", "_", "@", "a@", "a@b", "a@b,", "a@b.", "~", "'", "[", "]", "/", "//", "%41"),
    *(" ", "\t", " \t", "a ", " a", "  a", '"', '""', '"a', "\\", "\\\\", '\\"', "(", ")", "()", "((", "(\\", "<", ">"),
    *("<>", "<a", "<a@b>", "=", "==", "=?", "?=", "=?=", "=?a?q?", "=?a?q?a?=", "=?a?q?a?= ", "=?utf-8?b?YQ==?="),
    *("=\r\n", "= ", "=4", "=3D", "=E4", ";", "; ", ";a=", "; a=b", ';a="', ";a*0*=", ",", ", ", ":", "a:", ":;"),
    *("g:a@b;", "\r", "\n", "\r\n", "\r\n ", "\n\n", "\n ", "a\n", "a:\n", "a: b\n", "a: b\r\n", "a\n a", "a\r\n"),
    *(
        "\n--",
        "--",
        "--b",
        "\n--b",
        "\n--b--",
        "--b\n",
        "--b\r\n",
        "--b\r\n\r\nx\r\n",
        "-\n",
        "\r\n--b\r\n\r\n",
        "{",
        "}",
    ),
    *(
        "begin 644 a\n",
        "begin",
        "begin 644",
        "end\n",
        "`\n",
        "#AAAA\r\n",
        "M" + 60 * "A" + "\r\n",
        "YWJj",
        "YWJj\r\n",
        "YQ==",
    ),
    *(
        "\xe4",
        "\xe4 ",
        "a\xe4",
        "\xa0",
        "\xc2\xa0",
        "\x85",
        "\0",
        "\x7f",
        "\x1b$B",
        "\x1b(B",
        "\x1b$B0!\x1b(B",
        "+AA-",
        "+AA",
    ),
    *(
        "~{0!~}",
        "\x0e0!\x0f",
        "\x81",
        "\xed\xa0\x80",
        "\xf0\x9f\x98\x80",
        "\xc3\xbc.",
        "\xc3\xbc",
        "\xe3\x80\x82",
        "\xff\xfe",
    ),
    *(
        ">",
        "> ",
        "> \r\n",
        "-- \r\n",
        "x \r\n",
        "<p>",
        "</p>",
        "<a href=x>",
        "<!--",
        "-->",
        "&",
        "&nbsp;",
        "&#1;",
        "<style>",
    ),
    *(
        "<br",
        "<b x='",
        "</",
        "<![CDATA[",
        "<?",
        "From x\r\n",
        " \r\n",
        "X: y\r\n ",
        "x=",
        'x="y" ',
        "mailto:",
        "http://",
    ),
    *(
        "a#@b#.example, ",
        "x#=y; ",
        "X-#: y\r\n",
        "; filename*#*=%41",
        "; filename*#=a",
        "c#@d.example\r\n ",
        "\n--b#\n",
    ),
    "--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n",
    "--b#\r\nContent-Type: multipart/mixed; boundary=b#\r\n\r\n--b#\r\n",
    "--b\r\nContent-Type: text/html\r\n\r\n<p>x\r\n",
    "--b\r\nContent-Type: text/plain\r\nContent-Disposition: attachment; filename=a\r\n\r\nx\r\n",
    "--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\n",
    "Content-Type: message/rfc822\r\n\r\n",
    "Content-Type: multipart/mixed; boundary=b\r\n",
)
#: What stands before a run, so that it is read as something that was begun.
OPENERS: Final = ("", '"', "(", "<", "a@", "=?utf-8?q?", "a=", 'a="', "begin 644", "--b\r\n", "\r\n\r\n", "a <")
#: What stands behind it, so that an expression that got so far fails after all.
ENDS: Final = ("!", "", "\0@", "x", "\rX", "[@b.example", '"', "?=", ">", "\r\n\r\n--b--\r\n")


class Run(NamedTuple):
    """A message with a run in it."""

    place: str
    opener: str
    unit: str
    end: str

    def raw(self, octets: int) -> bytes:
        """The message, with a run of about so many octets."""
        repeated = self.unit * (octets // len(self.unit) + 1)
        if "#" in self.unit:
            pieces = repeated.split("#")
            repeated = "".join(f"{piece}{number}" for number, piece in enumerate(pieces))
        value = self.opener + repeated[:octets] + self.end
        first, *others = PLACES[self.place].split("%s")
        return "%".join(each.replace("%%", "%") for each in [first]).encode("latin-1") + b"".join(
            value.encode("latin-1") + each.replace("%%", "%").encode("latin-1") for each in others
        )


def runs(places: list[str], *, step: int = 1) -> Iterator[Run]:
    """All runs at these places, or every `step`th combination of what stands before and behind, another for each."""
    around = list(itertools.product(OPENERS, ENDS))
    turn = 0
    for place, unit in itertools.product(places, UNITS):
        for number in range(turn % step, len(around), step):
            opener, end = around[number]
            yield Run(place, opener, unit, end)
        # Coprime to the number of combinations, so that in turn all of them come.
        turn += 7


def for_recording() -> Iterator[bytes]:
    """Messages of which some parser is given the longest text that it can be given."""
    units = (
        "a",
        " ",
        '"',
        "=?a?q?a?= ",
        "; a=b",
        "a: b\r\n",
        "\n--b\n",
        "\xe4",
        "a@b.example, ",
        "begin-base64 644 a\n",
    )
    for place in PLACES:
        yield Run(place, "", "a", "").raw(0)
        for unit in units:
            yield Run(place, "", unit, "").raw(20_000)


def seconds(raw: bytes) -> float:
    """CPU time of reading a message."""
    began = time.process_time()
    with contextlib.suppress(Unusable):
        parse(raw)
    return time.process_time() - began


def grows(work: Callable[[int], float], octets: int, seconds_at_once: float) -> str | None:
    """What speaks for more than linear time; None where nothing does.

    `work(n)` gives the CPU time of a size n. What takes less than `seconds_at_once` is let go: quadratic work takes
    much more. Of the rest the least of several times is taken at doubling sizes: linear work doubles each time,
    quadratic work takes four times as long.
    """
    if work(octets) < seconds_at_once and work(octets) < seconds_at_once:
        return None
    least = []
    for size in (octets, 2 * octets, 4 * octets):
        least.append(min(work(size) for _ in range(3)))
        if least[-1] > 2.0:
            break
    ratios = [later / max(before, 1e-6) for before, later in itertools.pairwise(least)]
    if len(least) == 1 or (min(ratios) > 2.8 and (len(ratios) > 1 or least[-1] > 1.0)):
        return f"{', '.join(f'{each * 1000:.1f}' for each in least)} ms at doubling sizes from {octets}"
    return None


def check(run: Run, octets: int) -> str | None:
    """What speaks for more than linear time in reading the message."""
    found = grows(lambda size: seconds(run.raw(size)), octets, octets * 1.5e-6)
    return None if found is None else f"{run}: {found}"


def main() -> None:
    """Reads all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--octets", type=int, default=16_000)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--place", action="append")
    options = parser.parse_args()
    places = options.place or sorted(PLACES)[options.shard :: options.shards]
    gc.disable()
    count = 0
    for count, run in enumerate(runs(places, step=options.step), 1):
        found = check(run, options.octets)
        if found:
            print(found, flush=True)
        if count % 1000 == 0:
            gc.collect()
    print(f"{count} messages")


if __name__ == "__main__":
    main()
