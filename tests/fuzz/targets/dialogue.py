"""A whole dialogue: whatever a client says and however it arrives, every reply is one, and nothing is let through."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from relay.core.address import comparison_form
from relay.core.outcomes import LoginFailure
from relay.core.records import ApiKey
from relay.smtp import replies
from relay.smtp.command import LINE_LIMIT
from relay.smtp.framing import Flaw, Framing
from relay.smtp.options import Options
from relay.smtp.replies import Reply
from relay.smtp.session import Expects, Session
from relay.smtp.spool import Body
from relay.smtp.submission import Login, Submission, Verdict
from tests.fuzz.stream import EndOfStream, Script, Stream
from tests.support.unlimited import Unlimited

_PLAIN = b64encode(b"\0any\0good")
TOKENS = (
    b"EHLO x\r\n",
    b"HELO x\r\n",
    b"STARTTLS\r\n",
    b"AUTH PLAIN " + _PLAIN + b"\r\n",
    b"AUTH LOGIN\r\n",
    b"Z29vZA==\r\n",
    b"YnVzeQ==\r\n",
    b"*\r\n",
    b"MAIL FROM:<a@b.example>",
    b"RCPT TO:<c@d.example>\r\n",
    b"RCPT TO:<busy@d.example>\r\n",
    b"DATA\r\n",
    b"\r\n.\r\n",
    b"\n.\n",
    b"BDAT 3\r\n",
    b"BDAT 0 LAST\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"VRFY x\r\n",
    b"QUIT\r\n",
    b" SIZE=",
    b" SMTPUTF8",
    b"GET / HTTP/1.1\r\n",
    b"\xff\xc0\x80",
)
MAX_OCTETS = 1024

_REPLY = re.compile(rb"(?:(\d{3})-[ -~]*\r\n)*(\d{3}) [ -~]*\r\n")
_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_LOGIN = Login("0" * 64, ApiKey("key", "user", "full_access", None))
_MOST_MESSAGES = 5


@dataclass
class _Services:
    """Opens to `good`, is in trouble at `busy`; accepts, refuses, or is in trouble, as the first recipient has it."""

    options: Options
    logins: int = 0
    accepted: list[tuple[tuple[str, ...], bytes]] = field(default_factory=list)

    def authenticate(self, password: str) -> Login | LoginFailure:
        if password == "busy":
            return LoginFailure.UNAVAILABLE
        self.logins += password == "good"
        return _LOGIN if password == "good" else LoginFailure.WRONG_KEY

    def submit(self, submission: Submission) -> Verdict:
        assert self.logins
        assert submission.login is _LOGIN
        assert 1 <= len(submission.recipients) <= self.options.max_recipients
        assert len({comparison_form(each) for each in submission.recipients}) == len(submission.recipients)
        assert all(each.isprintable() and "@" in each for each in submission.recipients)
        octets = submission.body.read()
        assert len(octets) == submission.body.size <= self.options.max_message_size
        if submission.recipients[0].startswith("busy@"):
            return Verdict(replies.TRY_LATER, "unavailable")
        self.accepted.append((submission.recipients, octets))
        return Verdict(replies.queued(str(len(self.accepted))), "queued", str(len(self.accepted)))


def seeds() -> Iterator[bytes]:
    """Inputs to begin with: mails by DATA and by BDAT, log-ins, mistakes; at once and in pieces."""
    auth = b"EHLO x\r\nAUTH PLAIN " + _PLAIN + b"\r\n"
    mail = b"MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<c@d.example>\r\n"
    data = mail + b"DATA\r\nSubject: x\r\n\r\n..x\r\n.\r\n"
    for dialogue in (
        auth + data + data + b"QUIT\r\n",
        auth + mail + b"BDAT 5\r\n12345BDAT 3 LAST\r\n678QUIT\r\n",
        auth + mail + b"RCPT TO:<e@f.example>\r\nRCPT TO:<busy@g.example>\r\nRSET\r\n" + mail + b"BDAT 0 LAST\r\n",
        b"HELO x\r\nAUTH LOGIN\r\nYW55\r\nZ29vZA==\r\n" + data,
        b"EHLO x\r\nSTARTTLS\r\n" + auth + data,
        b"EHLO x\r\nAUTH LOGIN YW55\r\n*\r\nAUTH PLAIN\r\nAGEAYnVzeQ==\r\nAUTH PLAIN YQ==\r\nQUIT\r\n",
        auth + mail + b"DATA\r\nx\n.\nMAIL FROM:<evil@b.example>\r\n",
        auth + b"MAIL FROM:<>\r\nRCPT TO:<busy@d.example>\r\nDATA\r\n.\r\nRCPT TO:<x>\r\n",
        auth + "MAIL FROM:<ü@ü.example> SMTPUTF8\r\nRCPT TO:<ü@ü.example>\r\n".encode() + b"BDAT 9999\r\n",
        auth + b"MAIL FROM:<a@b.example> RET=HDRS ENVID=x+2By\r\nRCPT TO:<c@d.example> ORCPT=rfc822;c+2B@d.example\r\n",
        auth + b"MAIL FROM:<a@b.example> SMTPUTF8\r\nRCPT TO:<c@d.example> ORCPT=utf-8;c@d.example NOTIFY=NEVER\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"NOOP\nRSET\r\n",
        b"VRFY\r\nEXPN x\r\nHELP\r\n" + b"X\r\n" * 12,
    ):
        for head in (b"\x00\x00", b"\x01\x00", b"\x06\x03\x01\x05\x09"):
            yield head + dialogue


def check(octets: bytes) -> None:
    """Raises AssertionError where a reply is none, a dialogue depends on its pieces, or something is let through."""
    script = Script(octets)
    options = _options(script.number())
    sizes = script.sizes()
    stream = script.rest()
    whole, by_octets, in_pieces = (_talk(stream, pieces, options) for pieces in ((), (1,), sizes))
    # What STARTTLS throws away is what has arrived: only there the pieces matter.
    if not whole.secured and not by_octets.secured:
        assert whole.said == by_octets.said == in_pieces.said
        assert whole.accepted == by_octets.accepted == in_pieces.accepted
    for talk in (whole, by_octets, in_pieces):
        ends = stream.count(b".\r\n") + stream.upper().count(b"LAST")
        assert len(talk.accepted) <= min(ends, _MOST_MESSAGES)


def _options(number: int) -> Options:
    return Options(
        "relay.test",
        max_message_size=200,
        max_recipients=3,
        allow_utf8_local_parts=bool(number & 2),
        tls_available=bool(number & 1),
        max_errors=8,
        max_auth_failures=3,
        max_before_auth=12,
        max_messages=_MOST_MESSAGES,
        spool_threshold=10_000,
    )


@dataclass
class _Talk:
    said: list[bytes]
    accepted: list[tuple[tuple[str, ...], bytes]]
    secured: bool


def _talk(stream: bytes, pieces: Sequence[int], options: Options) -> _Talk:
    """The loop of relay.smtp.connection, without its socket."""
    services = _Services(options)
    session = Session(options, services, Unlimited(), "fuzz")
    framing = Framing(Stream(stream, pieces).receive)
    kept = Body.in_memory
    said = [_checked(session.greeting())]
    secured = False
    #: Each step but that of an empty chunk takes an octet at least.
    steps = 2 * len(stream) + 2
    try:
        while True:
            steps -= 1
            assert steps, "it doesn't end"
            if session.expects is Expects.TLS:
                framing.discard()
                session.tls_started()
                secured = True
            reply = _read(session, framing)()
            if reply is None:
                assert session.expects is Expects.CHUNK
                continue
            said.append(_checked(reply))
            if not secured and options.tls_available:
                assert reply.code not in (235, 334, 354)
                assert not services.logins
            if reply.closes:
                break
    except EndOfStream:
        pass
    session.close()
    assert Body.in_memory == kept
    return _Talk(said, services.accepted, secured)


def _read(session: Session, framing: Framing) -> Callable[[], Reply | None]:
    if session.expects is Expects.DATA:
        end = framing.data(session.sink, session.max_message_size)
        return lambda: session.end_of_data(end)
    if session.expects is Expects.CHUNK:
        framing.chunk(session.chunk_size, session.sink)
        return session.end_of_chunk
    line = framing.line(LINE_LIMIT)
    return (lambda: session.flawed_line(line)) if isinstance(line, Flaw) else (lambda: session.line(line))


def _checked(reply: Reply) -> bytes:
    octets = reply.encode()
    assert _REPLY.fullmatch(octets), octets
    lines = octets.split(b"\r\n")[:-1]
    assert {line[:3] for line in lines} == {str(reply.code).encode()}
    assert all(len(line) <= replies.MAX_LINE_OCTETS - 2 for line in lines)
    if reply.enhanced:
        assert _ENHANCED.fullmatch(reply.enhanced)
        assert reply.enhanced[0] == str(reply.code)[0]
    assert reply.code != 421 or reply.closes
    return octets
