"""POST /events/ses: what SES reports by way of SNS, accepted where it is signed and of our topic (contract section 8).

SNS repeats what was not answered 2xx, for an hour at most, and then throws it away or into a dead-letter queue. So 200
is said of what is committed, or never will be of use; while Postgres is away it is 503, and kept besides.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import gevent
import structlog

from relay.aws.sns_host import NotFetched, is_sns_url
from relay.core import json_document, metrics
from relay.core.json_document import Json
from relay.core.spellings import mailbox_of
from relay.postgres.events import Events, Stored
from relay.redis.cache import Cache
from relay.web import ses_events, sns
from relay.web.event_writer import EventWriter, Fate
from relay.web.responses import Environ, Response, text
from relay.web.signing_certificates import NoKey, SigningCertificates
from relay.web.sns import SnsMessage

log = structlog.get_logger(__name__)

#: Octets of a body (contract section 8).
MAX_OCTETS: Final = 262_144
#: How long SNS waits for an answer is 15 seconds; by then it has one.
WAIT_SECONDS: Final = 10.0
#: Ids of messages that are known to be kept.
_MOST_REMEMBERED: Final = 10_000

_ROUTE: Final = "ses"
_DONE: Final = text(_ROUTE, "200 OK", "ok")
_NOT_NOW: Final = text(_ROUTE, "503 Service Unavailable", "Try again later")
_TOO_LARGE: Final = text(_ROUTE, "413 Content Too Large", "Too large")
_NOT_TAKEN: Final = text(_ROUTE, "500 Internal Server Error", "The database refuses this event")
_OTHER_TOPIC: Final = text(_ROUTE, "403 Forbidden", "Not a topic of SES_EVENTS_SNS_TOPIC_ARN")
_NOT_SIGNED: Final = text(_ROUTE, "403 Forbidden", "Not signed by Amazon SNS")


class Notifications:
    """Answers messages of SNS."""

    def __init__(
        self,
        topics: str | None,
        certificates: SigningCertificates,
        fetch: Callable[[str], bytes],
        writer: EventWriter[Stored],
    ) -> None:
        """`topics`: SES_EVENTS_SNS_TOPIC_ARN, with commas between several; None: no topic is accepted. `fetch`: gets a
        URL of SNS (`relay.aws.sns_host.SnsHost.get`)."""
        self._topics = frozenset(topic.strip() for topic in (topics or "").split(",") if topic.strip())
        self._certificates = certificates
        self._fetch = fetch
        self._writer = writer
        #: Ids of messages that are kept, as far as this process has kept them.
        self._kept: OrderedDict[str, None] = OrderedDict()

    def answer(self, environ: Environ) -> Response:
        """The response to a POST."""
        body = _body(environ)
        if body is None:
            return _counted("too_large", _TOO_LARGE)
        return self.take(body, environ.get("HTTP_X_AMZ_SNS_MESSAGE_TYPE") or "")

    def take(self, body: bytes, type_header: str | None) -> Response:
        """The response to a message. `type_header`: the field x-amz-sns-message-type; None: it came another way."""
        try:
            message = sns.parse(body, type_header)
        except sns.Malformed as malformed:
            return _counted("malformed", text(_ROUTE, "400 Bad Request", f"Not a message of SNS: {malformed}"))
        if message.topic not in self._topics:
            log.warning("notification_of_another_topic")
            return _counted("other_topic", _OTHER_TOPIC)
        try:
            signed = sns.is_signed_by(message, self._certificates.key(message.certificate_url))
        except NoKey as missing:
            if not missing.final:
                return _counted("no_certificate", _NOT_NOW)
            signed = False
        if not signed:
            log.warning("notification_not_signed")
            return _counted("not_signed", _NOT_SIGNED)
        if message.type == sns.SUBSCRIPTION:
            return self._confirm(message)
        return _counted("ignored", _DONE) if message.type != sns.NOTIFICATION else self._store(message)

    def _confirm(self, message: SnsMessage) -> Response:
        if not is_sns_url(message.subscribe_url):
            return _counted("not_signed", _NOT_SIGNED)
        try:
            self._fetch(message.subscribe_url)
        except NotFetched as failed:
            log.warning("subscription_not_confirmed", status=failed.status)
            return _counted("not_confirmed", _NOT_NOW)
        log.info("subscription_confirmed", topic=message.topic)
        return _counted("confirmed", _DONE)

    def _store(self, message: SnsMessage) -> Response:
        try:
            event = ses_events.event_of(message.text, message.message_id)
        except ses_events.Unreadable:
            log.error("notification_unreadable")
            return _counted("unreadable", text(_ROUTE, "400 Bad Request", "Not an event of SES"))
        if event is None:
            return _counted("ignored", _DONE)
        if self._writer.away and message.message_id in self._kept:
            return _counted("repeated_while_away", _NOT_NOW)
        done = self._writer.put(event.document)
        with gevent.Timeout(WAIT_SECONDS, False):  # type: ignore[arg-type]  # gevent: no exception
            fate = done.get()
            if isinstance(fate, Stored):
                return _counted(_word(fate), _DONE)
            if fate is Fate.KEPT:
                self._remember(message.message_id)
            return _counted(fate.value, _NOT_TAKEN if fate is Fate.UNSTORABLE else _NOT_NOW)
        return _counted("late", _NOT_NOW)

    def _remember(self, message_id: str) -> None:
        """So that what SNS repeats during an outage is kept once."""
        self._kept[message_id] = None
        while len(self._kept) > _MOST_REMEMBERED:
            self._kept.popitem(last=False)


def write(events: Events, cache: Cache, documents: Sequence[bytes]) -> list[Stored]:
    """Writes events of SES, and puts addresses that are suppressed by now into the relay's caches."""
    stored = events.write_ses(documents)
    for document, result in zip(documents, stored, strict=True):
        event = json_document.loads(document) if result.recorded else None
        if isinstance(event, dict):
            _tell(cache, result.user_id, event)
    return stored


def _tell(cache: Cache, user_id: str | None, event: Mapping[str, Json]) -> None:
    recipients = event["recipients"]
    if user_id is None or not isinstance(recipients, list) or not recipients:
        return
    reason = str(event["reason"])
    metrics.SUPPRESSIONS_LEARNED.labels(reason).inc(len(recipients))
    cache.remember(user_id, {mailbox_of(str(address)): reason for address in recipients})


def _word(stored: Stored) -> str:
    if not stored.known:
        return "unknown_mail"
    return "recorded" if stored.recorded else "repeated"


def _body(environ: Environ) -> bytes | None:
    """The content; None where it is too large. What ends in the middle is an empty one."""
    length = environ.get("CONTENT_LENGTH") or ""
    if length.isdecimal() and int(length[:20]) > MAX_OCTETS:
        return None
    try:
        body: bytes = environ["wsgi.input"].read(MAX_OCTETS + 1)
    except (OSError, ValueError):
        return b""
    return None if len(body) > MAX_OCTETS else body


def _counted(result: str, response: Response) -> Response:
    metrics.NOTIFICATIONS.labels(result).inc()
    return response
