"""What clients hear while a server behind the relay fails, and how soon all is well again."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import redis

from tests.faults.load import Attempt, Conversation, Fate, Lost, Mail, make_mail, plain
from tests.faults.stage import Stage, wait_until
from tests.support.proxy import Proxy


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table: `run` brings the fault about for as long as its body lasts."""

    #: The attribute of the stage that it happens to.
    server: str
    name: str
    run: Callable[[Stage], contextlib.AbstractContextManager[None]]
    #: Replies to a message while it lasts, and to an AUTH with a key that no process has seen.
    mail: frozenset[bytes]
    auth: frozenset[bytes]
    #: Seconds that it lasts.
    lasts: float = 1.0


@dataclass(slots=True)
class Seen:
    """What came of one fault."""

    replies: Counter[bytes] = field(default_factory=Counter)
    auth_replies: Counter[bytes] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_auth: float = 0.0
    #: Seconds from the fault's end until all is as before.
    healed: float = 0.0
    #: Connections that the relay tried to make while the fault lasted, and how long that was.
    connections: int = 0
    lasted: float = 0.0

    def add(self, other: Seen) -> None:
        """Takes in another time that the same fault happened; of times, the longest counts."""
        self.replies += other.replies
        self.auth_replies += other.auth_replies
        self.slowest = max(self.slowest, other.slowest)
        self.slowest_auth = max(self.slowest_auth, other.slowest_auth)
        self.healed = max(self.healed, other.healed)
        self.connections += other.connections
        self.lasted += other.lasted

    @property
    def connections_a_second(self) -> float:
        """Over the time that the fault lasted, or a second."""
        return self.connections / max(self.lasted, 1.0)


class Ground:
    """A stage on which faults happen, and everything that was sent on it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.mails: list[Mail] = []
        self._numbers = itertools.count(1)

    def observe(self, fault: Fault) -> Seen:
        """Four impatient clients send, and one authenticates, while the fault lasts and until it is over."""
        stage = self.stage
        proxy: Proxy = getattr(stage, f"{fault.server}_proxy")
        healed = _HEALED[fault.server]
        seen = Seen()
        wait_until(lambda: healed(self), f"all is well before {fault.name}", seconds=60)
        over = threading.Event()
        clients = [stage.talk() for _ in range(4)]
        threads = [threading.Thread(target=self._send, args=(client, seen, over), daemon=True) for client in clients]
        threads.append(threading.Thread(target=_authenticate, args=(stage, seen, over), daemon=True))
        began = time.monotonic()
        with fault.run(stage):
            for thread in threads:
                thread.start()
            over.wait(fault.lasts)
            over.set()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive(), "a client hangs"
            seen.lasted = time.monotonic() - began
            seen.connections = proxy.arrivals_since(began)
        ended = time.monotonic()
        wait_until(lambda: healed(self), f"it heals after {fault.name}", seconds=60)
        seen.healed = time.monotonic() - ended
        for client in clients:
            client.close()
        return seen

    def send(self, client: Conversation | None = None, mail: Mail | None = None) -> tuple[Mail, Attempt]:
        """One attempt to send a message, a new one if none is given, over a new connection if none is given."""
        if mail is None:
            mail = make_mail(next(self._numbers))
            self.mails.append(mail)
        try:
            own = self.stage.talk() if client is None else client
            try:
                attempt = own.deliver(mail)
            finally:
                if client is None:
                    own.close()
        except Lost as lost:
            attempt = Attempt(Fate.BEFORE_DOT, str(lost).encode())
        mail.attempts.append(attempt)
        return mail, attempt

    def _send(self, client: Conversation, seen: Seen, over: threading.Event) -> None:
        while not over.is_set():
            _, attempt = self.send(client)
            seen.replies[_code(attempt)] += 1
            seen.slowest = max(seen.slowest, attempt.seconds)
            if attempt.fate not in (Fate.ACCEPTED, Fate.TEMPORARY):
                return
            time.sleep(0.1)


def _authenticate(stage: Stage, seen: Seen, over: threading.Event) -> None:
    for number in itertools.count():
        with contextlib.closing(Conversation(stage.relay.port, None)) as client:
            began = time.monotonic()
            client.send(b"AUTH PLAIN " + plain(f"os_live_nobody_{number}_{began}") + b"\r\n")
            try:
                reply = client.reply()
            except Lost as lost:
                reply = str(lost).encode()
            seen.slowest_auth = max(seen.slowest_auth, time.monotonic() - began)
            seen.auth_replies[reply[:9]] += 1
        if over.wait(0.2):
            return


def _code(attempt: Attempt) -> bytes:
    if attempt.fate in (Fate.AFTER_DOT, Fate.BEFORE_DOT):
        return str(attempt.fate.value).encode()
    return b"250" if attempt.fate is Fate.ACCEPTED else bytes(attempt.reply[:9])


# When all is well again


def _mail_flows(ground: Ground) -> bool:
    """A message is accepted."""
    _, attempt = ground.send()
    return attempt.fate is Fate.ACCEPTED


def _repeats_are_known(ground: Ground) -> bool:
    """The same message again is told from a new one, which only Redis can do."""
    mail, _ = ground.send()
    mail.recognisable = False  # without Redis it isn't
    _, attempt = ground.send(mail=mail)
    return b"already" in attempt.reply


def _jobs_arrive(ground: Ground) -> bool:
    """The job of a message that is sent now is in the queue before long: its intent goes when the queue took it."""
    _, attempt = ground.send()
    until = time.monotonic() + 2.0
    with redis.Redis.from_url(ground.stage.valkey.url) as client:
        while attempt.email_id and time.monotonic() < until:
            if client.zscore("smtp-relay:jobs:intents", attempt.email_id) is None:
                return True
            time.sleep(0.05)
    return False


_HEALED: Final[dict[str, Callable[[Ground], bool]]] = {
    "postgres": _mail_flows,
    "valkey": _repeats_are_known,
    "sqs": _jobs_arrive,
}
