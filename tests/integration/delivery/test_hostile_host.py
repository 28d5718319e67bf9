"""A smart host as an enemy: whatever it says, and whenever, the ledgers on both ends agree, and nothing hangs."""

from __future__ import annotations

import json
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from config.settings import Settings
from relay.core import metrics
from relay.delivery import smtp_provider
from relay.delivery.content import Held
from relay.delivery.deliverer import Deliverer
from relay.delivery.outcome import Failed, Outcome, Sent, Verdict
from relay.delivery.provider import Handover
from relay.delivery.row import email_of
from relay.delivery.smart_host import SmartHost
from relay.delivery.smtp_client import SmtpConnection
from relay.delivery.smtp_provider import SmtpProvider
from relay.postgres.outgoing import Outgoing
from tests.support.certificates import write_pair
from tests.support.hostile_host import HostileHost, Mail
from tests.support.smtp_double import CLOSE, PASSWORD, USER, Odd, SmtpDouble

ROOT = Path(__file__).resolve().parents[3]
#: What no test waits for in earnest, seconds.
PATIENCE = 60.0


def provider_of(port: int, **more: Any) -> SmtpProvider:
    values = {
        "database_url": "postgres://",
        "smarthost_host": "127.0.0.1",
        "smarthost_port": port,
        "smarthost_tls": "none",
        "hostname": "client.example",
    } | more
    return SmtpProvider(SmartHost(Settings(**values)), connections=4)


def handover(sender: str, *to: str, content: bytes = b"") -> Handover:
    return Handover(
        email_id=sender.partition("@")[0],
        sender=sender,
        to=to,
        cc=(),
        bcc=(),
        content=Held(b"Sender: %s\r\n\r\n.\r\n%s" % (sender.encode(), content)),
        region="smtp",
        configuration_set=None,
    )


def wrong_with(outcome: Outcome, mail: Mail, people: tuple[str, ...]) -> str:
    """What the host's ledger says against an outcome; empty where nothing."""
    if isinstance(outcome, Failed):
        if outcome.verdict is Verdict.UNCLEAR:
            return ""
        if mail.taken:
            return f"{outcome.verdict} for a mail that was taken"
        if outcome.verdict is Verdict.PERMANENT and not (mail.all_refused or mail.refused == set(people)):
            return "failed for good, and not refused"
        return ""
    named = {each.address: each for each in outcome.refused}
    for address in people:
        count = mail.taken[address]
        if address not in named and count != 1:
            return f"sent, and {count} taken"
        if address in named and count and named[address].code[0] in "45":
            return "refused, and taken"
        if address in named and not named[address].passing and address not in mail.refused:
            return "refused for good, and not refused"
    return ""


def round_of(seed: int) -> tuple[dict[str, str], Counter[str], Counter[str]]:
    """Some mails to one host: what is wrong, what the host did, what came of the mails."""
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    with HostileHost(random.Random(seed)) as host:
        provider = provider_of(host.port)
        wrong = {}
        for number in range(12):
            people = tuple(f"p{each}@x.example" for each in range(chance.choice([1, 1, 2, 3])))
            sender = f"m{number}@a.example"
            outcome = provider.send(handover(sender, *people, content=b"x\r\n" * chance.choice([0, 10, 30_000])))
            found = wrong_with(outcome, host.mail(sender), people)
            if found:
                wrong[f"seed {seed}, mail {number}"] = f"{found}: {outcome}"
            ends["sent" if isinstance(outcome, Sent) else outcome.verdict.value] += 1
        provider.close()
        host.wait_for_ends()
        if host.reused:
            wrong[f"seed {seed}"] = f"sent on a connection of no use: {host.reused}"
        return wrong, host.twists, ends


def test_whatever_a_host_says_and_whenever_both_ledgers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """By chance. What is never answered ends with the time limits, which are short here: no end depends on them."""
    for name, seconds in (("OPENING_SECONDS", 1.0), ("DATA_SECONDS", 1.0), ("CALL_SECONDS", 1.2)):
        monkeypatch.setattr(smtp_provider, name, seconds)
    wrong: dict[str, str] = {}
    twists: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    with ThreadPoolExecutor(20) as pool:
        for found, twisted, ended in pool.map(round_of, range(30)):
            wrong |= found
            twists += twisted
            ends += ended
    assert wrong == {}
    assert len(twists) == 11, twists
    assert set(ends) >= {"sent", "unclear", "either", "permanent"}, ends


# One connection, octet by octet.


@contextmanager
def serving(work: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serves one connection after the other; the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    try:
                        work(sock)
                    except OSError:
                        continue

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)


REPLIES = b"220 x\r\n250-x\r\n250 %s\r\n250 a\r\n250 b\r\n354 c\r\n250 queued as D1\r\n"


@pytest.mark.parametrize("offer", [b"PIPELINING", b"HELP"])
def test_closed_behind_each_octet_nothing_counts_as_sent_that_was_not_said_to_be(offer: bytes) -> None:
    """The host reads all that comes, and never says more than so many octets of what it has to say."""
    replies = REPLIES % offer
    asked = replies.index(b"250 queued")
    count = 0
    took = False

    def work(sock: socket.socket) -> None:
        nonlocal took
        rest = replies[:count]
        heard = b""
        # A reply for each command: not one octet before it is due.
        for due in (b"", b"EHLO", b"MAIL", b"RCPT", b"DATA", b"\r\n.\r\n"):
            while due not in heard:
                octets = sock.recv(65_536)
                if not octets:
                    return
                heard += octets
            reply, rest = _first_reply(rest)
            took = took or due == b"\r\n.\r\n"
            sock.sendall(reply)
            if not rest:
                return

    wrong = {}
    with serving(work) as port:
        provider = provider_of(port)
        for count in range(len(replies) + 1):
            took = False
            outcome = provider.send(handover("m@a.example", "to@x.example"))
            if isinstance(outcome, Sent):
                right = count == len(replies)
            elif outcome.verdict is Verdict.UNCLEAR:
                right = count >= asked  # the text may have left before it was seen that the host is gone
            else:
                right = not took and outcome.verdict is not Verdict.PERMANENT
            if not right:
                wrong[count] = outcome
        provider.close()
    assert wrong == {}


def _first_reply(octets: bytes) -> tuple[bytes, bytes]:
    """The first reply, which may be of two lines or cut off, and the rest."""
    end = 0
    while True:
        line = octets[end:].partition(b"\n")
        end += len(line[0]) + len(line[1])
        if not line[1] or line[0][3:4] != b"-":
            return octets[:end], octets[end:]


def test_what_a_host_says_in_the_midst_of_the_text_is_no_answer_to_its_end() -> None:
    """It reads no more before it has said it, and the text is more than there is room for on the way."""

    def work(sock: socket.socket) -> None:
        for replies in (b"220 x\r\n", b"250 x\r\n", b"250 a\r\n", b"250 b\r\n", b"354 c\r\n"):
            sock.sendall(replies)
            sock.recv(1000)
        sock.sendall(b"250 queued as D1\r\n")
        while sock.recv(1_000_000):
            continue

    with serving(work) as port:
        outcome = provider_of(port).send(handover("m@a.example", "to@x.example", content=b"x\r\n" * 10_000_000))
    assert isinstance(outcome, Failed)
    assert outcome.verdict is Verdict.UNCLEAR


def test_a_reply_too_many_refuses_no_mail() -> None:
    """All are taken for the ones to the commands before theirs: the one to DATA would refuse the mail for good."""

    def work(sock: socket.socket) -> None:
        sock.sendall(b"220 x\r\n")
        sock.recv(1000)
        sock.sendall(b"250-x\r\n250 PIPELINING\r\n")
        sock.recv(1000)
        sock.sendall(b"250 a\r\n250 a\r\n250 b\r\n550 c\r\n354 d\r\n")
        sock.recv(1000)

    with serving(work) as port:
        outcome = provider_of(port).send(handover("m@a.example", "b@x.example", "c@x.example"))
    assert isinstance(outcome, Failed)
    assert (outcome.verdict, outcome.code) == (Verdict.EITHER, "SaidUnasked")


def test_of_the_connections_that_are_kept_one_is_used_that_the_host_has_not_closed() -> None:
    with SmtpDouble(mechanisms="") as double:
        provider = provider_of(double.port)
        connections = [provider._host.open(time.monotonic() + PATIENCE) for _ in range(3)]
        for connection in connections:
            provider._kept.keep(connection)
        # The one that would be used first.
        connections[2].send(b"QUIT\r\n", time.monotonic() + PATIENCE)
        connections[2].reply(time.monotonic() + PATIENCE)
        while connections[2].silent():
            time.sleep(0.001)
        assert isinstance(provider.send(handover("m@a.example", "to@x.example")), Sent)
        provider.close()
        assert double.connections == 3


def test_a_host_that_stops_reading_is_given_up_with_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_provider, "DATA_SECONDS", 1.0)
    monkeypatch.setattr(smtp_provider, "OPENING_SECONDS", 1.0)
    ended = threading.Event()

    def work(sock: socket.socket) -> None:
        for replies in (b"220 x\r\n", b"250 x\r\n", b"250 a\r\n", b"250 b\r\n", b"354 c\r\n"):
            sock.sendall(replies)
            sock.recv(1000)
        ended.wait(PATIENCE)

    with serving(work) as port:
        outcome = provider_of(port).send(handover("m@a.example", "to@x.example", content=b"x" * 20_000_000))
        ended.set()
    assert isinstance(outcome, Failed)
    assert (outcome.verdict, outcome.code) == (Verdict.EITHER, "TimeoutError")


PROBE = """
from gevent import monkey; monkey.patch_all()
import sys, time
from config.settings import Settings
from relay.delivery.row import email_of
from relay.delivery.smart_host import SmartHost
from relay.delivery.smtp_client import ConnectionBroken
host = SmartHost(Settings(database_url="postgres://", smarthost_host="localhost", smarthost_port=int(sys.argv[1]),
                          smarthost_tls="implicit", smarthost_ca_path=sys.argv[2]))
connection = host.open(time.monotonic() + 30)
try:
    print(connection.ask("NOOP", time.monotonic() + 0.5).code)
except ConnectionBroken as broken:
    print(broken.code)
"""


def test_under_tls_an_octet_now_and_then_is_not_in_time(tmp_path: Path) -> None:
    """Not a reply: octets of one record of TLS, of which OpenSSL makes nothing before it is whole."""
    certificate, key = write_pair(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def work(plain: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)

        def heard() -> None:
            while True:
                try:
                    tls.read(1000) if tls.version() and handshaken else tls.do_handshake()
                except ssl.SSLWantReadError:
                    plain.sendall(outgoing.read())
                    incoming.write(plain.recv(65_536))
                else:
                    plain.sendall(outgoing.read())
                    return

        handshaken = False
        heard()
        handshaken = True
        for reply in (b"220 x\r\n", b"250 x\r\n"):
            tls.write(reply)
            plain.sendall(outgoing.read())
            heard()
        tls.write(b"250 " + b"x" * 200 + b"\r\n")
        for octet in outgoing.read():
            plain.sendall(bytes((octet,)))
            time.sleep(0.02)

    with serving(work) as port:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(port), certificate],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (done.stdout.strip(), done.stderr) == ("TimeoutError", "")


# What it offers.


@pytest.mark.parametrize(
    ("offer", "taken"),
    [
        ("SIZE", True),
        ("SIZE 0", True),
        ("SIZE -1", True),
        ("SIZE 99999999999999999999", True),
        (f"SIZE {'9' * 4000}", True),
        ("SIZE 1e3", True),
        ("SIZE 1 2", True),
        ("SIZE 1", False),
        ("SIZE 00000000000000000001", False),
        ("x " * 2000, True),
        ("\r\n250-".join(f"X{number} {'y' * 200}" for number in range(200)), True),
    ],
)
def test_whatever_a_host_offers_mails_leave_or_are_refused(offer: str, taken: bool) -> None:
    with SmtpDouble(offers=(offer, "PIPELINING"), mechanisms="") as double:
        provider = provider_of(double.port)
        outcome = provider.send(handover("m@a.example", "to@x.example"))
        provider.close()
        if taken:
            assert outcome == Sent("D1", ())
        else:
            assert isinstance(outcome, Failed)
            assert (outcome.verdict, outcome.code) == (Verdict.PERMANENT, "MessageTooLarge")


def test_a_list_of_a_hundred_thousand_words_is_not_kept() -> None:
    def work(sock: socket.socket) -> None:
        sock.sendall(b"220 x\r\n")
        sock.recv(1000)
        sock.sendall(b"".join(b"250-%s\r\n" % (b"word " * 500) for _ in range(200)) + b"250 x\r\n")
        sock.recv(1000)

    with serving(work) as port:
        outcome = provider_of(port).send(handover("m@a.example", "to@x.example"))
    assert isinstance(outcome, Failed)
    assert (outcome.verdict, outcome.code) == (Verdict.NOT_THIS_MAIL, "EndlessReply")


def test_authentication_that_is_offered_in_the_clear_alone_gives_no_password(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    heard: list[str] = []
    settings = {
        "smarthost_host": "localhost",
        "smarthost_tls": "starttls",
        "smarthost_ca_path": certificate,
        "smarthost_user": USER,
        "smarthost_password": PASSWORD,
    }
    with SmtpDouble(context=context, mechanisms="", heard=heard.append) as double:
        double.odd = Odd("EHLO", "250-x\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN")
        outcome = provider_of(double.port, **settings).send(handover("m@a.example", "to@x.example"))
        assert isinstance(outcome, Failed)
        assert (outcome.verdict, outcome.kind, outcome.code) == (Verdict.NOT_THIS_MAIL, "credentials", "NoAuth")
    assert [command.split()[0] for command in heard] == ["EHLO", "STARTTLS", "EHLO"]


# What becomes of it.


@pytest.mark.parametrize("repeats", [True, False])
def test_where_some_have_a_mail_the_setting_says_what_becomes_of_those_of_whom_it_is_not_known(repeats: bool) -> None:
    """They are in a further transaction, since the host takes one recipient at a time; that one's answer is lost."""
    before = {word: metrics.DELIVERY_UNCLEAR.labels(word).value for word in ("found", "again", "failed")}
    with SmtpDouble(mechanisms="", most_recipients=1) as double:
        settings = Settings(
            database_url="postgres://", smarthost_host="127.0.0.1", smarthost_port=double.port, smarthost_tls="none"
        )
        provider = SmtpProvider(SmartHost(settings), connections=1, repeats_unclear=repeats)
        keep = double.keep

        def kept(taken: Any) -> int:
            number = keep(taken)
            double.odd = Odd("end", CLOSE, taken=True)
            return number

        double.keep = kept  # type: ignore[method-assign]
        outcome = provider.send(handover("m@a.example", "a@x.example", "b@x.example"))
        provider.close()
        assert [taken.recipients for taken in double.taken] == [("a@x.example",), ("b@x.example",)]
    assert isinstance(outcome, Sent)
    assert [(each.address, each.passing) for each in outcome.refused] == [("b@x.example", repeats)]
    after = {word: metrics.DELIVERY_UNCLEAR.labels(word).value - count for word, count in before.items()}
    assert after == {"found": 1, "again": int(repeats), "failed": int(not repeats)}


@pytest.mark.parametrize("offers", [("PIPELINING",), ()])
def test_where_a_recipient_is_refused_and_the_connection_closed_the_others_get_it(
    offers: tuple[str, ...],
) -> None:
    """As Exim does (`drop`): the refusal is what counts, not that the connection is gone."""
    drop = "550 5.7.1 not here; closing"
    with SmtpDouble(mechanisms="", offers=offers, answers={"b@x.example": [drop] * 3, "c@x.example": [drop]}) as double:
        provider = provider_of(double.port)
        alone = provider.send(handover("m@a.example", "b@x.example"))
        assert isinstance(alone, Failed)
        assert (alone.verdict, alone.code) == (Verdict.PERMANENT, "550 5.7.1")
        among = provider.send(handover("n@a.example", "a@x.example", "b@x.example", "c@x.example", "d@x.example"))
        assert isinstance(among, Sent)
        assert [(each.address, each.passing) for each in among.refused] == [
            ("b@x.example", True),
            ("c@x.example", True),
        ]
        assert [taken.recipients for taken in double.taken] == [("a@x.example", "d@x.example")]
        both = provider.send(handover("o@a.example", "b@x.example", "d@x.example"))
        assert isinstance(both, Sent)
        provider.close()


def test_a_name_for_the_mail_that_is_a_recipient_is_none() -> None:
    with SmtpDouble(mechanisms="") as double:
        double.odd = Odd("end", "250 2.0.0 <to@x.example> accepted", taken=True)
        outcome = provider_of(double.port).send(handover("m@a.example", "to@x.example"))
    assert outcome == Sent("m@a.example", ())


@pytest.mark.parametrize("password", [PASSWORD, "pässword of mine"])
def test_a_password_is_not_shown_in_whatever_form_a_reply_repeats_it(password: str) -> None:
    settings = {"smarthost_user": USER, "smarthost_password": password}
    with SmtpDouble(mechanisms="PLAIN") as double:
        host = SmartHost(
            Settings(database_url="postgres://", smarthost_host="127.0.0.1", smarthost_port=double.port, **settings)
        )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(f"550-no\r\n550 {password} is wrong\r\n".encode())
        assert not host.may_show(SmtpConnection(ours).reply(time.monotonic() + PATIENCE).text)


def test_the_end_waits_for_all_connections_together_as_long_as_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(SmtpConnection, "quit", lambda connection, until: (asked.append(until), connection.close()))
    with SmtpDouble(mechanisms="") as double:
        provider = provider_of(double.port)
        for _ in range(3):
            provider._kept.keep(provider._host.open(time.monotonic() + PATIENCE))
        provider.close()
    assert len(asked) == 3
    assert len(set(asked)) == 1


# Addresses.


def test_replies_that_name_addresses_come_into_no_log_line_or_metric(
    outgoing: Outgoing, new_deliverer: Callable[..., Deliverer], add_email: Callable[..., str]
) -> None:
    """At each phase, with each kind of reply. No error is raised, so that none is reported."""
    phases = ("banner", "EHLO", "AUTH", "MAIL", "RCPT", "DATA", "end")
    kinds = ("550 5.1.1", "451 4.3.0", "421", "354", "250-x\r\n550", "nothing")
    with SmtpDouble() as double, capture_logs() as lines:
        provider = provider_of(double.port, smarthost_user=USER, smarthost_password=PASSWORD)
        for phase, kind in product(phases, kinds):
            email_id = add_email(to=["to@secret.example", "b@secret.example"], subject="bill of Bob")
            double.odd = Odd(phase, f"{kind} <to@secret.example> to@secret.example bill of Bob {PASSWORD}")
            for row in outgoing.claim([email_id]):
                new_deliverer(provider).deliver(email_of(row))
        provider.close()
    labels = [values for family in metrics.FAMILIES for values, _ in family.children()]
    said = json.dumps([lines, labels], default=str)
    assert len(lines) > len(phases) * len(kinds)
    for secret in ("secret.example", "Bob", PASSWORD, "exc_info", "unexpected_error"):
        assert secret not in said, secret
