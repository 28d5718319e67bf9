"""The HTTP process and a delivery worker on separate servers, with a proxy before Postgres and Redis, and the ledger of
what came back: what SES told, clicks, and webhooks."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil
import redis

from relay.core.tracking_token import TrackingTokens
from relay.redis import keys
from scripts.database import apply_schema, create_database, create_webhook, execute, query
from scripts.services import Postgres, Valkey, Web, WebhookSink, WebhookWorker, processes, start_together
from scripts.services.sns_double import TOPIC, SnsDouble, ses_message
from tests.faults.delivery_stage import through
from tests.faults.stage import wait_until
from tests.support.proxy import Proxy
from tests.support.webhook_rows import MATERIAL, SECRET, encrypted

_TRACKING_SECRET: Final = "a secret of sixteen"
_TARGET: Final = "https://target.example/"
#: Seconds below which a delivery has not waited.
_AT_ONCE: Final = 2.0
_FIELDS: Final = {"Content-Type": "text/plain; charset=UTF-8", "x-amz-sns-message-type": "Notification"}
_MAILS: Final = """
INSERT INTO emails (id, "from", "to", subject, status, user_id)
SELECT id, 'ann@example.com', jsonb_build_array(id || '@x.example'), 's', 'sent', 'user'
  FROM unnest('{{{ids}}}'::uuid[]) AS mails (id)"""


@dataclass(slots=True)
class Ledger:
    """Both ends: what was answered and received, and the rows."""

    #: What SES told, how often it had to, and which answers it had.
    notifications: int = 0
    posts: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    #: Answered 200, and not there once.
    not_stored: list[str] = field(default_factory=list)
    #: Mails whose status, or whose recipient's suppression, is not what the events say.
    wrong_mails: list[str] = field(default_factory=list)
    #: Clicks by their answers, and those that were redirected and not recorded.
    clicks: Counter[str] = field(default_factory=Counter)
    clicks_lost: int = 0
    #: Events without the one delivery of theirs that succeeded, and deliveries that the endpoint has not seen.
    undelivered: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    #: Calls, those that repeat an id, those with another id of the same delivery, and those with a wrong signature.
    calls: int = 0
    repeats: int = 0
    further: int = 0
    unsigned: list[str] = field(default_factory=list)
    #: Seconds from an event to the attempt that succeeded: the median, and the most.
    median: float = 0.0
    longest: float = 0.0
    #: The same seconds by what a delivery waited for, and how long there was no worker.
    waits: dict[str, list[float]] = field(default_factory=dict)
    away: float = 0.0

    def check(self) -> None:
        """Raises AssertionError where a promise was broken."""
        assert self.notifications > 0, self
        assert self.answers.keys() <= {"200", "503", "unanswered"}, self.answers
        assert self.clicks.keys() <= {"302", "unanswered"}, self.clicks
        for broken in ("not_stored", "wrong_mails", "undelivered", "unseen", "unsigned"):
            assert not getattr(self, broken), f"{broken}: {getattr(self, broken)[:5]}"


class WebStage:
    """Web and worker know the proxies alone; notifications, clicks and the ledger go straight to the servers."""

    def __init__(self, directory: Path) -> None:
        self.postgres = Postgres(directory / "postgres", durable=False)
        self.valkey = Valkey(directory / "valkey")
        self.sink = WebhookSink(directory / "sink")
        self.sns = SnsDouble(directory / "sns")
        self._directory = directory
        self._closing = contextlib.ExitStack()
        self._tokens = TrackingTokens(_TRACKING_SECRET)
        self._domain_id = str(uuid.uuid4())
        self._mails: list[str] = []
        self._lock = threading.Lock()
        self._ledger = Ledger()
        #: MessageId → mail, of what was answered 200; and clicks that were redirected, by mail.
        self._accepted: dict[str, str] = {}
        self._clicked: Counter[str] = Counter()
        #: When there was no worker (time.time()), and what those that were killed had claimed.
        self._away: list[tuple[float, float]] = []
        self._killed_at = 0.0
        self._left_claimed: set[str] = set()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as closing:
            servers = (self.postgres, self.valkey, self.sink)
            start_together(*servers)
            for server in servers:
                closing.callback(server.stop)
            closing.enter_context(self.sns)
            self.database_url = create_database(self.postgres.url(), "web_faults")
            apply_schema(self.database_url)
            self._prepare()
            self.proxies = {
                server.name: closing.enter_context(Proxy(server.port)) for server in (self.postgres, self.valkey)
            }
            common = {
                "DATABASE_URL": through(self.database_url, self.proxies[self.postgres.name]),
                "REDIS_URL": through(self.valkey.url, self.proxies[self.valkey.name]),
                "SMTP_RELAY_DRAIN_SECONDS": "5",
            }
            web = {
                "TRACKING_SECRET": _TRACKING_SECRET,
                "SES_EVENTS_SNS_TOPIC_ARN": TOPIC,
                "SMTP_RELAY_HTTP_PROCESSES": "2",
                "SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS": "1000",
            }
            worker = {
                "WEBHOOK_SECRET_ENCRYPTION_KEY": MATERIAL,
                "SMTP_RELAY_PROVIDER": "maildir",
                "SMTP_RELAY_MAILDIR": str(self._directory / "mails"),
            }
            self.web = Web(self._directory / "web", common | web, sns=(str(self.sns.cafile), self.sns.port))
            self.worker = WebhookWorker(self._directory / "worker", self.sink, common | worker)
            closing.callback(self.web.stop)
            closing.callback(self.worker.stop)
            start_together(self.web, self.worker)
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def _prepare(self) -> None:
        execute(
            self.database_url,
            "INSERT INTO domains (id, name, status, track_clicks, user_id)"
            " VALUES (%s, 'example.com', 'verified', true, 'user')",
            (self._domain_id,),
        )
        create_webhook(
            self.database_url,
            *("email.delivered", "email.bounced", "email.clicked"),
            url=self.sink.url("/ms/5"),
            signing_secret_enc=encrypted(SECRET),
        )

    # What comes back.

    def add(self, count: int) -> list[str]:
        """Adds so many mails that have left; their ids."""
        ids = [str(uuid.uuid4()) for _ in range(count)]
        execute(self.database_url, _MAILS.format(ids=",".join(ids)))
        with self._lock:
            self._mails += ids
        return ids

    def tell(self, email_id: str, *, patience: float) -> None:
        """Delivery and Bounce of a mail, each as SNS does: again until it is answered 200."""
        for word in ("Delivery", "Bounce"):
            message = self.sns.notification(ses_message(word, email_id, [f"{email_id}@X.example"]))
            body = json.dumps(message).encode()
            with self._lock:
                self._ledger.notifications += 1
            self._until("200", self._ledger.answers, partial(self._request, "POST", "/events/ses", body), patience)
            with self._lock:
                self._accepted[message["MessageId"]] = email_id

    def click(self, email_id: str, *, patience: float) -> None:
        """The link of a mail, as a browser does: again until it is answered."""
        about = {"v": 1, "kind": "click", "userId": "user", "emailId": email_id, "domainId": self._domain_id}
        path = f"/api/track/click/{self._tokens.make({**about, 'targetUrl': _TARGET})}"
        self._until("302", self._ledger.clicks, partial(self._request, "GET", path), patience)
        with self._lock:
            self._clicked[email_id] += 1

    def _until(self, wanted: str, answers: Counter[str], request: Callable[[], str], patience: float) -> None:
        until = time.monotonic() + patience
        while True:
            answer = request()
            with self._lock:
                answers[answer] += 1
            if answer == wanted:
                return
            assert time.monotonic() < until, f"no {wanted} in {patience:.0f} s: {answers}"
            time.sleep(0.3)

    def _request(self, method: str, path: str, body: bytes | None = None) -> str:
        """The status; or that there was no answer, as when a process is killed."""
        connection = http.client.HTTPConnection(self.web.host, self.web.port, timeout=30)
        try:
            connection.request(method, path, body, {} if body is None else _FIELDS)
            response = connection.getresponse()
            response.read()
            return str(response.status)
        except (OSError, http.client.HTTPException):
            return "unanswered"
        finally:
            connection.close()

    # What is broken.

    def web_processes(self) -> list[psutil.Process]:
        """Those that serve."""
        return processes.serving(self.web.pid)

    def kill_worker(self) -> None:
        """Kills the worker, and notes what it had claimed."""
        self._killed_at = time.time()
        self.worker.kill()
        claimed = (
            "SELECT id::text FROM webhook_deliveries"
            " WHERE status = 'pending' AND attempt = 0 AND next_retry_at > clock_timestamp()"
        )
        self._left_claimed |= {str(delivery_id) for (delivery_id,) in query(self.database_url, claimed)}

    def revive(self) -> None:
        """Starts again what has ended."""
        for server in (self.web, self.worker):
            if not server.running:
                server.kill()
                server.start()
                if server is self.worker:
                    self._away.append((self._killed_at, time.time()))

    # What came of it.

    def settle(self, seconds: float) -> None:
        """Waits until nothing is on its way."""
        with redis.Redis.from_url(self.valkey.url) as client:

            def over() -> bool:
                self.revive()
                pending = "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'"
                kept = client.llen(keys.KEPT_SES_KEY) + client.llen(keys.KEPT_TRACKING_KEY)
                return kept == 0 and query(self.database_url, pending) == [(0,)]

            wait_until(over, "all is delivered", seconds=seconds)

    def ledger(self) -> Ledger:
        """Compares both ends."""
        ledger = self._ledger
        ledger.posts = sum(ledger.answers.values())
        stored = Counter(
            source for (source,) in query(self.database_url, "SELECT source_id FROM email_events WHERE source_id <> ''")
        )
        ledger.not_stored = [message_id for message_id in self._accepted if stored[message_id] != 1]
        told = set(self._accepted.values())
        right = query(
            self.database_url,
            "SELECT e.id::text FROM emails e JOIN email_suppressions s ON s.email = e.id || '@x.example'"
            " AND s.reason = 'bounced' AND s.user_id = e.user_id WHERE e.status = 'bounced'",
        )
        ledger.wrong_mails = sorted(told - {str(email_id) for (email_id,) in right})
        recorded = Counter(
            str(email_id)
            for (email_id,) in query(
                self.database_url, "SELECT email_id::text FROM email_events WHERE type = 'email.clicked'"
            )
        )
        ledger.clicks_lost = sum(max(0, count - recorded[email_id]) for email_id, count in self._clicked.items())
        self._compare_calls(ledger)
        return ledger

    def _compare_calls(self, ledger: Ledger) -> None:
        rows = query(
            self.database_url,
            "SELECT e.id::text, d.id::text, d.status, extract(epoch FROM d.attempted_at - e.received_at)::float8,"
            " extract(epoch FROM e.received_at)::float8, d.attempt"
            " FROM email_events e LEFT JOIN webhook_deliveries d ON d.event_id = e.id",
        )
        per_event = Counter(event_id for event_id, *_ in rows)
        hooks = self.sink.taken()
        ledger.calls, ids = len(hooks), Counter(hook.id for hook in hooks)
        ledger.repeats = sum(count - 1 for count in ids.values())
        deliveries = Counter(hook_id.split("_")[1] for hook_id in ids)
        ledger.further = sum(count - 1 for count in deliveries.values())
        seconds: list[float] = []
        for event_id, delivery_id, status, taken, received, attempt in rows:
            if status != "success" or per_event[event_id] != 1:
                ledger.undelivered.append(f"{event_id}: {status}")
            elif not deliveries[str(delivery_id)]:
                ledger.unseen.append(str(delivery_id))
            else:
                seconds.append(float(str(taken)))
                cause = self._cause(str(delivery_id), float(str(received)), int(str(attempt)), seconds[-1])
                ledger.waits.setdefault(cause, []).append(seconds[-1])
        ledger.away = sum(end - start for start, end in self._away)
        ledger.median = sorted(seconds)[len(seconds) // 2] if seconds else 0.0
        ledger.longest = max(seconds, default=0.0)
        key = SECRET.removeprefix("whsec_").encode()
        for hook in hooks:
            signed = f"{hook.id}.{hook.fields['svix-timestamp']}.{hook.body}".encode()
            digest = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
            if hook.fields["svix-signature"] != f"v1,{digest}" or json.loads(hook.body)["id"] != hook.id:
                ledger.unsigned.append(hook.id)

    def _cause(self, delivery_id: str, received: float, attempt: int, seconds: float) -> str:
        """What a delivery waited for. `received`: when its event came (time.time())."""
        if attempt > 1:
            return "a further attempt"
        if delivery_id in self._left_claimed:
            return "the lease of a killed worker"
        if seconds < _AT_ONCE:
            return "nothing"
        if any(start <= received <= end for start, end in self._away):
            return "a worker, and those before it"
        return "those before it"

    def tracebacks(self) -> list[str]:
        """What web and worker wrote of unforeseen errors."""
        found: list[dict[str, Any]] = []
        for server in (self.web, self.worker):
            for line in server.log_path.read_text(errors="replace").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    found.append(json.loads(line))
        wrong = ("greenlet_failed", "unexpected_error", "request_failed", "event_failed", "http_failed", "events_lost")
        return [str(line) for line in found if line.get("event") in wrong]
