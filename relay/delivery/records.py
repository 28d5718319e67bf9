"""What is recorded in a row once its mail was handed over, can't be, or is put off (contract section 6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import gevent
import structlog

from relay.core import metrics
from relay.core.errors import PostgresRefused, PostgresUnavailable, Unstorable
from relay.delivery.handovers import EVENT_SECONDS, Handovers
from relay.delivery.outcome import KINDS, Failed, Outcome, Verdict
from relay.delivery.recipients import Progress, begun
from relay.delivery.row import OutgoingEmail
from relay.delivery.send_events import sent_event
from relay.postgres.batches import Batches
from relay.postgres.closed_rows import BouncedRow
from relay.postgres.ended_rows import EndedRow
from relay.postgres.failed_rows import FailedRow
from relay.postgres.left_rows import UNCLEAR, UNCLEAR_TEXT
from relay.postgres.outgoing import Outgoing
from relay.postgres.sent_rows import Event, SentRow

log = structlog.get_logger(__name__)

#: Seconds for which it is tried to record that a provider has a mail. Below the age at which a claim is given up.
RECORDING_SECONDS: Final = 555.0
#: Seconds for which a mail that is put back waits for others, so that one statement does for all of them.
_TOGETHER_SECONDS: Final = 0.02
_MOST_TOGETHER: Final = 1_000

# A series that begins with its first event hides that event from rate().
for _kind in (*KINDS, Verdict.PERMANENT.value, Verdict.PASSING.value):
    metrics.DELIVERY_FAILURES.labels(_kind)


#: Id, seconds until it may leave, whether the provider may have it.
_PutBack = tuple[str, float, bool]


class Records:
    """Records what becomes of mails. Every method returns a word for it, and raises PostgresUnavailable.

    `provider`: its name, for events. `max_attempts`: how often a mail is tried that fails in a way that may pass.
    `handovers`: gets what the provider said. `rest`: the seconds for which nothing can leave; then `pause` is called
    with them.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        *,
        provider: str,
        max_attempts: int,
        handovers: Handovers,
        rest: Callable[[], float],
        pause: Callable[[float], None],
    ) -> None:
        self._outgoing = outgoing
        self._provider = provider
        self._max_attempts = max_attempts
        self._handovers = handovers
        self._rest = rest
        self._pause = pause
        self._put_backs: Batches[_PutBack, bool] = Batches(
            "delivery_put_back",
            self._put_back_all,
            lambda row: self._put_back_all([row])[0],
            most=_MOST_TOGETHER,
            seconds=_TOGETHER_SECONDS,
        )

    def answered(
        self, email: OutgoingEmail, answer: Outcome, outcome: Outcome, progress: Progress | None, *, records_sent: bool
    ) -> str:
        """Records what became of a call. `outcome`: the provider's answer, as other mails of the region make it out."""
        if isinstance(outcome, Failed):
            if isinstance(answer, Failed) and answer.verdict is Verdict.UNCLEAR:
                metrics.DELIVERY_UNCLEAR.labels("found").inc()
                wait = 0.0 if records_sent else EVENT_SECONDS
                return self.failed(email, outcome, progress, unclear=True, wait=wait)
            self._handovers.answered(email.id, None)
            return self.failed(email, outcome, progress)
        if outcome.refused or progress is not None:
            return self._partly_sent(email, begun(outcome) if progress is None else progress.after(outcome))
        self._handovers.answered(email.id, outcome.message_id)
        event = sent_event(email.id, self._provider, outcome.message_id) if records_sent else None
        return self._until_recorded(SentRow(email.id, event), "sent")

    def _partly_sent(self, email: OutgoingEmail, progress: Progress) -> str:
        """Some recipients have the mail, and the others are tried again as long as there are attempts left.

        Until that is recorded the mail counts as unclear: as sent, it would never reach the others.
        """
        if not progress.delayed or email.retries + 1 >= self._max_attempts:
            return self.finished(email, progress)
        return self._until_recorded(self._delayed_row(email, progress.failure(), progress), "delayed")

    def finished(self, email: OutgoingEmail, progress: Progress) -> str:
        """Some have the mail, and no recipient is tried again."""
        bounces = progress.bounces(email.id, self._provider)
        sent = sent_event(email.id, self._provider, progress.message_id)
        if not bounces:
            return self._until_recorded(SentRow(email.id, sent), "sent")
        log.info("recipients_refused", email_id=email.id, codes=progress.codes())
        return self._until_recorded(BouncedRow(email.id, [sent, *bounces]), "bounced")

    def kept(self, email: OutgoingEmail) -> str | None:
        """Records what is kept of a mail that was claimed once more, since its first claim had become too old; None:
        nothing is kept.
        """
        row = self._handovers.kept(email.id)
        if isinstance(row, FailedRow):
            return self._until_recorded(replace(row, mark=self._outgoing.mark(email.id)), "delayed")
        return None if row is None else self._until_recorded(row, "sent")

    def _until_recorded(self, row: EndedRow, word: str) -> str:
        """Records that a provider has a mail, however long Postgres is away: otherwise it would be sent once more.

        `word`: what is returned then. What Postgres refuses, or has not taken after RECORDING_SECONDS, is kept by
        `Handovers`, which tries it again: "unrecorded". Raises PostgresUnavailable where that has no room.
        """
        until = time.monotonic() + RECORDING_SECONDS
        pause = 0.25
        while True:
            try:
                self._outgoing.ended(row)
                return word
            except (PostgresUnavailable, Unstorable) as error:
                over = time.monotonic() > until
                refused = isinstance(error, PostgresRefused | Unstorable)
                if refused:
                    self._prove(row)
                if (over or refused) and self._handovers.keep(row):
                    return "unrecorded"
                if over:
                    raise
            gevent.sleep(pause)
            pause = min(5.0, pause * 2)

    def _prove(self, row: EndedRow) -> None:
        """The row can't say that the provider has the mail. Its events can, which are looked for with the next claim;
        they name the recipients that do not get it, too.
        """
        events: Sequence[Event] = ()
        if isinstance(row, BouncedRow):
            events = row.events
        elif isinstance(row, SentRow) and row.event is not None:
            events = (row.event,)
        with suppress(PostgresUnavailable, Unstorable):
            for event in events:
                self._outgoing.record(row.email_id, event)

    def put_back(self, email: OutgoingEmail, seconds: float, *, unclear: bool = False) -> str:
        """The mail waits, for a reason that is not in it; where none can leave, nothing else is looked for either."""
        rest = self._rest()
        if rest:
            self._pause(rest)
        self._put_backs.ask((email.id, seconds, unclear))
        return "put_back"

    def _put_back_all(self, rows: Sequence[_PutBack]) -> list[bool]:
        self._outgoing.put_back(
            [email_id for email_id, _, _ in rows],
            [seconds for _, seconds, _ in rows],
            unclear={email_id for email_id, _, unclear in rows if unclear},
        )
        return [True] * len(rows)

    def failed(
        self,
        email: OutgoingEmail,
        failed: Failed,
        progress: Progress | None,
        *,
        unclear: bool = False,
        wait: float = 0.0,
    ) -> str:
        """`unclear`: the provider may have the mail, which is found out before it is sent again. `wait`: seconds."""
        metrics.DELIVERY_FAILURES.labels(failed.kind or failed.verdict.value).inc()
        if failed.verdict is Verdict.NOT_THIS_MAIL:
            return self.put_back(email, max(wait, failed.pause), unclear=unclear)
        attempt = email.retries + 1
        # One that is unclear ends, too, when its attempts are used up: after the truth was asked (`Unclear.decide`).
        if failed.verdict is Verdict.PERMANENT or (attempt >= self._max_attempts and not unclear):
            if progress is not None:
                return self.finished(email, progress.given_up(failed))
            return self.fail(email, attempt, failed.code, failed.message)
        row = self._delayed_row(email, failed, progress, wait=wait)
        self._outgoing.ended(replace(row, code=UNCLEAR, message=UNCLEAR_TEXT) if unclear else row)
        return "delayed"

    def _delayed_row(
        self, email: OutgoingEmail, failed: Failed, progress: Progress | None, *, wait: float = 0.0
    ) -> FailedRow:
        """For a mail that is tried again later, only for recipients that have not got it where some have."""
        attempt = email.retries + 1
        seconds = max(wait, float(min(900, 2 ** min(attempt + 1, 6))))
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        payload = self._payload("provider_retry_scheduled", attempt, failed.code, failed.message) | {
            "email_id": email.id,
            "next_retry_at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        if progress is not None:
            payload["recipients"] = progress.payload()
        event = Event(type="delayed", source_id=f"provider-delayed:{email.id}:{attempt}", payload=payload)
        return self._failed_row(
            email.id, event, attempt=attempt, seconds=seconds, code=failed.code, message=failed.message
        )

    def fail(self, email: OutgoingEmail, attempt: int, code: str, message: str) -> str:
        """The mail is not tried again, after so many attempts."""
        payload = self._payload("provider_retries_exhausted", attempt, code, message)
        event = Event(type="failed", source_id=f"provider-dead-letter:{email.id}:{attempt}", payload=payload)
        self._outgoing.ended(
            self._failed_row(email.id, event, attempt=attempt, seconds=None, code=code, message=message)
        )
        return "failed"

    def _failed_row(
        self, email_id: str, event: Event, *, attempt: int, seconds: float | None, code: str, message: str
    ) -> FailedRow:
        mark = self._outgoing.mark(email_id)
        return FailedRow(email_id, mark, event, attempt=attempt, seconds=seconds, code=code, message=message)

    def _payload(self, reason: str, attempt: int, code: str, message: str) -> dict[str, object]:
        """What the events of both kinds of failure say."""
        return {
            "reason": reason,
            "provider": self._provider,
            "attempt_count": attempt,
            "last_error": {"code": code, "message": message[:1000]},
        }
