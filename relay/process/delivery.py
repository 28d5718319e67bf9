"""One delivery process: puts the parts of the way out together, works until it is to end, takes them apart again."""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from psycogreen.gevent import patch_psycopg

from relay.core.tls_memory import put_tls_into_memory

patch_psycopg()
put_tls_into_memory()

import gevent
import structlog
from gevent.event import Event

import config.logging
import config.sentry
from config.settings import Settings
from relay import __version__
from relay.core.supervision import run_once, supervise
from relay.delivery import send_events, waiting_age
from relay.delivery.account import Account
from relay.delivery.deliverer import Deliverer
from relay.delivery.dispatcher import Dispatcher
from relay.delivery.handovers import Handovers
from relay.delivery.large_mails import LargeMails
from relay.delivery.maildir_provider import MaildirProvider
from relay.delivery.outbound_http import Outbound
from relay.delivery.pace import Pace
from relay.delivery.provider import Provider
from relay.delivery.row_source import Turns
from relay.delivery.smart_host import SmartHost
from relay.delivery.smtp_provider import SmtpProvider
from relay.delivery.tracking import tracking_of
from relay.delivery.unclear import LeftBehind, Unclear
from relay.delivery.webhook_attempts import WebhookAttempts
from relay.delivery.webhook_secrets import WebhookSecrets
from relay.delivery.webhooks import Webhooks
from relay.operator import exposition
from relay.postgres import waiting, webhook_deliveries
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.row_contents import RowContents
from relay.postgres.sending_facts import SendingDomain
from relay.postgres.webhook_deliveries import WebhookDeliveries
from relay.process import fork_ready, signals
from relay.process.assignment import Assignment
from relay.process.collector import collect_seldom
from relay.process.heartbeat import BEAT_SECONDS
from relay.redis.claim_states import ClaimStates
from relay.redis.link import RedisLink
from relay.redis.webhook_wakes import WakeListener

if TYPE_CHECKING:
    from relay.aws.sqs_receiver import QueueReceiver

log = structlog.get_logger(__name__)

#: Connections to Postgres that a process opens at most, but for walks, the look at events, and what is sent.
_CONNECTIONS = 5
#: Further ones for webhooks: whatever becomes of those, mails go on.
_WEBHOOK_CONNECTIONS = 2
#: Seconds for which a connection is kept for what waits for a lock: one user's locked rows must not take all of them.
_LOCK_SECONDS = 0.05
#: Seconds that Redis has for an answer: a mail waits for it right before it is handed over.
_REDIS_SECONDS = 1.0


def load(settings_json: bytes) -> None:
    """Loads the code that these settings make necessary and that is not loaded with this module."""
    settings = Settings.from_json(settings_json)
    if settings.sentry_dsn is not None:
        config.sentry.load()
    if settings.delivery_metrics_port is not None:
        exposition.load()
    # boto3, and the 12 MB that it takes, only where SES or a queue is used.
    if settings.provider == "ses":
        import relay.delivery.ses_provider  # noqa: PLC0415
    if settings.queue_url is not None:
        import relay.delivery.queue_jobs  # noqa: F401, PLC0415
    fork_ready.settle()


def run(assignment: Assignment, *, outbound: Outbound | None = None) -> int:
    """Delivers until a signal ends it; the exit status. `outbound`: how webhooks are reached."""
    settings = Settings.from_json(assignment.settings)
    config.logging.configure(settings)
    config.sentry.init(settings, __version__)
    exposition.serve(replace(settings, metrics_port=settings.delivery_metrics_port), assignment.index)
    database = Database(
        settings.database_url,
        statement_seconds=4.5,
        idle_limit=_CONNECTIONS,
        switched_off=waiting.PLANNER,
        lock_seconds=_LOCK_SECONDS,
    )
    turns = Turns(index=assignment.index, processes=settings.delivery_processes)
    webhook_database = Database(
        settings.database_url,
        statement_seconds=4.5,
        idle_limit=_WEBHOOK_CONNECTIONS,
        switched_off=webhook_deliveries.PLANNER,
    )
    webhooks = _webhooks(settings, webhook_database, turns, outbound or Outbound()) if settings.webhooks else None
    outgoing = Outgoing(database, deliveries_due=webhooks.wake if webhooks is not None else None)
    left = LeftRows(database)
    link = RedisLink(settings.redis_url, verify_tls=settings.redis_tls_verify, timeout=_REDIS_SECONDS, pause=1.0)
    provider, pace = _provider(settings, link)
    states = ClaimStates(link)
    handovers = Handovers(
        states, outgoing, left, service=assignment.service, index=assignment.index, provider=provider.name
    )
    deliverer = Deliverer(
        outgoing,
        provider,
        max_attempts=settings.email_provider_max_attempts,
        records_sent=lambda domain: _records_sent(settings, domain),
        tracking=tracking_of(settings),
        large_mails=LargeMails(
            RowContents(database), settings.spool_dir, fetches=max(1, settings.delivery_concurrency // 2)
        ),
        handovers=handovers,
        unclear=Unclear(left, settings.unclear),
        pause=lambda seconds: dispatcher.pause(seconds),  # noqa: PLW0108 - it is made below
        pace=pace,
    )
    rows = waiting.WaitingRows(database)
    dispatcher = Dispatcher(
        outgoing,
        rows,
        deliverer,
        _receiver(settings),
        left_behind=LeftBehind(left, states),
        concurrency=settings.delivery_concurrency,
        turns=turns,
        webhooks=webhooks,
        paced=pace.full if pace is not None else lambda: False,
    )
    collect_seldom()
    ending = Event()
    signals.attend(assignment.lifeline, drain=ending.set, certificate=None)
    handovers.introduce()
    supervise("delivery_claims", handovers.watch)
    dispatcher.start()
    if webhooks is not None:
        webhooks.start()
        if settings.redis_url is not None:
            listener = WakeListener(
                settings.redis_url, verify_tls=settings.redis_tls_verify, wake=webhooks.wake, name=webhooks.name
            )
            supervise("webhook_wakes", listener.listen)
    if settings.delivery_metrics_port is not None and assignment.index == 0:
        supervise("delivery_waiting_age", waiting_age.watch, rows)
    beat = gevent.get_hub().loop.timer(0, repeat=BEAT_SECONDS, ref=False)
    beat.start(assignment.heartbeats.beat, assignment.index)
    log.info("delivery_ready", provider=provider.name, concurrency=settings.delivery_concurrency)
    ending.wait()
    if pace is not None:
        pace.close()
    draining = run_once("webhook_drain", webhooks.drain, settings.drain_seconds) if webhooks is not None else None
    unfinished = dispatcher.drain(settings.drain_seconds)
    if unfinished:
        log.warning("delivery_unfinished", mails=unfinished)
    if draining is not None:
        draining.join()
    provider.close()
    handovers.close()
    link.close()
    outgoing.close()
    database.close()
    webhook_database.close()
    config.sentry.flush()
    return 0


def _webhooks(settings: Settings, database: Database, turns: Turns, outbound: Outbound) -> Webhooks:
    deliveries = WebhookDeliveries(database)
    secrets = WebhookSecrets(settings.webhook_secret_encryption_key)
    return Webhooks(deliveries, WebhookAttempts(deliveries, secrets, outbound), turns)


def _provider(settings: Settings, link: RedisLink) -> tuple[Provider, Pace | None]:
    """SES says how fast mail may leave, of a smart host the settings do; there is no limit elsewhere."""
    if settings.provider == "maildir":
        return MaildirProvider(settings.maildir or "maildir"), None
    if settings.provider == "smtp":
        smart_host = SmtpProvider(
            SmartHost(settings),
            connections=settings.smarthost_connections,
            repeats_unclear=settings.unclear == "again",
        )
        if settings.smarthost_rate is None:
            return smart_host, None
        fixed = Account(rate=settings.smarthost_rate, left=-1, off="")
        return smart_host, _pace(settings, smart_host, link, ask=lambda _: fixed, fallback=settings.smarthost_rate)
    from relay.delivery.ses_provider import SesProvider  # noqa: PLC0415 - see load()

    ses = SesProvider()
    return ses, _pace(settings, ses, link, ask=ses.account, fallback=settings.ses_rate)


def _pace(
    settings: Settings,
    provider: Provider,
    link: RedisLink,
    *,
    ask: Callable[[str], Account | None],
    fallback: float,
) -> Pace:
    return Pace(
        link if settings.redis_url is not None else None,
        provider.name,
        ask,
        fallback=fallback,
        shares=settings.pace_shares or settings.delivery_processes,
    )


def _receiver(settings: Settings) -> "QueueReceiver | None":
    if settings.queue_url is None:
        return None
    from relay.aws.sqs_receiver import QueueReceiver  # noqa: PLC0415 - see load()

    return QueueReceiver(settings.queue_url, settings.aws_region)


def _records_sent(settings: Settings, domain: SendingDomain | None) -> bool:
    """Whether this worker records `sent` for a mail of this domain."""
    return send_events.ours(
        settings.ses_send_events,
        provider=settings.provider,
        events_topic=settings.ses_events_topic,
        configuration_set=domain.configuration_set if domain is not None else None,
    )
