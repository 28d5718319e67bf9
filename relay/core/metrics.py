"""What the relay counts and times, and how a scraper reads it.

Counting is an addition to an attribute, without locks or look-ups, because it happens for every message whether or not
they are read; Prometheus's library is imported only where `SMTP_RELAY_METRICS_PORT` asks for it, and then at each
scrape reads what was counted. Each worker is a separate target, on the port of the setting plus its index: the
scraper adds them up, as it does for several machines. Labels are words from short lists of ours: no address, no user.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    pass


#: A series never has more children; the rest is counted together under `other`. A bound, should a label grow wild.
MAX_CHILDREN: Final = 200

#: Upper bounds in seconds, from a cached look-up to the deadline of a client.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Counter:
    """Only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Counts `by` more."""
        self.value += by


class Gauge:
    """Goes up and down. Set `value`, or add to it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """How often a value fell below each bound, and the sum of all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Takes one value, mostly seconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


Child = TypeVar("Child", Counter, Gauge, Histogram)


class Family(Generic[Child]):
    """One named series, with a child for each combination of label values; without labels there is one child.

    Take a child once, where it is used often: `QUEUED = MESSAGES.labels("queued")`, then `QUEUED.inc()`.
    """

    def __init__(self, name: str, help_text: str, kind: type[Child], label_names: tuple[str, ...] = ()) -> None:
        self.name = name
        self.help_text = help_text
        self.kind: type[Child] = kind
        self.label_names = label_names
        self._children: dict[tuple[str, ...], Child] = {}
        if not label_names:
            self.labels()
        FAMILIES.append(self)

    def labels(self, *values: str) -> Child:
        """The child of these label values, as many as there are names; made at its first use."""
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self.name} has the labels {self.label_names}")
            if len(self._children) >= MAX_CHILDREN:
                values = ("other",) * len(values)
            child = self._children.setdefault(values, self.kind())
        return child

    def children(self) -> list[tuple[tuple[str, ...], Child]]:
        """Label values and child, of every combination seen so far."""
        return list(self._children.items())


#: Every series, in the order of their definition.
FAMILIES: Final[list[Family[Any]]] = []

CONNECTIONS: Final = Family("smtp_relay_connections", "Connections accepted", Counter).labels()
CONNECTIONS_REFUSED: Final = Family("smtp_relay_connections_refused", "Answered 421 at once", Counter, ("reason",))
CONNECTIONS_OPEN: Final = Family("smtp_relay_connections_open", "Connections open now", Gauge).labels()
TLS_FAILED: Final = Family("smtp_relay_tls_failed", "TLS handshakes that did not succeed", Counter).labels()
AUTH: Final = Family("smtp_relay_auth", "AUTH commands by reply code", Counter, ("code",))
MESSAGES: Final = Family("smtp_relay_messages", "Messages answered, by what became of them", Counter, ("outcome",))
MESSAGE_BYTES: Final = Family("smtp_relay_message_bytes", "Octets of accepted messages", Counter).labels()
RECIPIENTS: Final = Family("smtp_relay_recipients", "Recipients of accepted messages", Counter).labels()
ENTRIES_LEFT_OUT: Final = Family(
    "smtp_relay_entries_left_out", "Entries of To, Cc, Bcc: no addresses", Counter
).labels()
REFUSALS: Final = Family("smtp_relay_refusals", "Replies from 400 on", Counter, ("code", "enhanced"))
LIMITED: Final = Family("smtp_relay_limited", "What a limit on clients refused", Counter, ("limit",))
PARSED: Final = Family("smtp_relay_parsed", "Messages by parser: flanker, or why not", Counter, ("parser",))
DROPPED_PARTS: Final = Family(
    "smtp_relay_dropped_parts", "Parts that are in no form of a message: AMP for Email", Counter
).labels()
PARSE_OVERRUNS: Final = Family("smtp_relay_parse_overruns", "Parses given up: worker, child", Counter, ("where",))
STAGE_SECONDS: Final = Family("smtp_relay_stage_seconds", "Time in parse, screen, store, reply", Histogram, ("stage",))
HUB_LAG: Final = Family("smtp_relay_hub_lag_seconds", "How late timers were", Histogram).labels()
JOBS: Final = Family("smtp_relay_jobs", "Send jobs by result: published, refused, swept", Counter, ("result",))
JOBS_PENDING: Final = Family("smtp_relay_jobs_pending", "Send jobs not yet taken by the queue", Gauge).labels()
DELIVERIES: Final = Family("smtp_relay_deliveries", "Delivery attempts by what became of them", Counter, ("outcome",))
DELIVERY_FAILURES: Final = Family("smtp_relay_delivery_failures", "Failed attempts by class", Counter, ("kind",))
DELIVERY_JOBS: Final = Family(
    "smtp_relay_delivery_jobs",
    "Messages of the queue: done, left, deleted",
    Counter,
    ("type", "result"),
)
DELIVERY_IN_FLIGHT: Final = Family("smtp_relay_delivery_in_flight", "Mails being delivered now", Gauge).labels()
DELIVERY_PAUSED_REGIONS: Final = Family(
    "smtp_relay_delivery_paused_regions", "Regions, configuration sets and domains that rest now", Gauge
).labels()
DELIVERY_CLAIM_SECONDS: Final = Family("smtp_relay_delivery_claim_seconds", "Time of a claim", Histogram).labels()
DELIVERY_SEND_SECONDS: Final = Family(
    "smtp_relay_delivery_send_seconds", "Time of a call to the provider", Histogram, ("result",)
)
DELIVERY_UNCLEAR: Final = Family(
    "smtp_relay_delivery_unclear",
    "Mails that the provider may have: found, then proven, again, failed or held",
    Counter,
    ("result",),
)
DELIVERY_HELD: Final = Family(
    "smtp_relay_delivery_held", "Claimed mails of more than 24 hours that wait for a command", Gauge
).labels()
DELIVERY_OLDEST_DUE: Final = Family(
    "smtp_relay_delivery_oldest_due_seconds", "For how long the oldest row has waited that is due", Gauge
).labels()
WEB_REQUESTS: Final = Family(
    "smtp_relay_web_requests", "HTTP requests by route and status", Counter, ("route", "status")
)
TRACKING_EVENTS: Final = Family(
    "smtp_relay_tracking_events", "Opens and clicks: recorded, or not to be recorded", Counter, ("type", "result")
)
NOTIFICATIONS: Final = Family(
    "smtp_relay_notifications", "Messages of SNS by what became of them", Counter, ("result",)
)
EVENTS_NOT_WRITTEN: Final = Family(
    "smtp_relay_events_not_written", "Events that came back and are kept, lost, unstorable", Counter, ("kind", "result")
)
EVENTS_KEPT: Final = Family("smtp_relay_events_kept", "Events in Redis that wait for Postgres", Gauge, ("kind",))
SUPPRESSIONS_LEARNED: Final = Family(
    "smtp_relay_suppressions_learned", "Addresses suppressed for a bounce or complaint", Counter, ("reason",)
)
WEBHOOK_DELIVERIES: Final = Family(
    "smtp_relay_webhook_deliveries", "Webhook deliveries by what became of an attempt", Counter, ("outcome",)
)
WEBHOOK_JOBS: Final = Family(
    "smtp_relay_webhook_jobs", "Jobs for webhook deliveries: published, refused, dropped", Counter, ("result",)
)
WEBHOOK_SECONDS: Final = Family("smtp_relay_webhook_seconds", "Time of a call to a webhook", Histogram, ("status",))
WEBHOOKS_IN_FLIGHT: Final = Family("smtp_relay_webhooks_in_flight", "Calls to webhooks being made now", Gauge).labels()
DELIVERY_RATE: Final = Family(
    "smtp_relay_delivery_rate", "Recipients a second that mail may leave to at present", Gauge, ("region",)
)
DELIVERY_PACE_SECONDS: Final = Family(
    "smtp_relay_delivery_pace_seconds", "Time for which a mail waited for its turn", Histogram
).labels()
CACHE: Final = Family("smtp_relay_cache", "Cache look-ups by kind and result: hit, miss", Counter, ("kind", "result"))
FAULTS: Final = Family("smtp_relay_faults", "Failed calls to postgres, redis, sqs", Counter, ("service",))
LOG_LINES_LOST: Final = Family("smtp_relay_log_lines_lost", "Log lines that could not be written", Counter).labels()
GREENLETS: Final = Family("smtp_relay_greenlets", "Supervised greenlets that run now", Gauge, ("greenlet",))
GREENLET_FAILURES: Final = Family(
    "smtp_relay_greenlet_failures", "Unexpected ends of greenlets; each began again", Counter, ("greenlet",)
)
