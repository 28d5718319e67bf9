"""One claimed mail, from its row to the provider's answer and what is recorded of it (contract section 6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

import idna
import structlog

from relay.core import metrics
from relay.core.address import domain_of
from relay.core.allowance import FAR, SHORT
from relay.core.errors import PostgresUnavailable, TooLate
from relay.core.provider_limits import MAX_RECIPIENTS
from relay.core.spellings import mailbox_of
from relay.delivery.compose import TOO_MANY_RECIPIENTS, Composed, Unsendable, bodies_of
from relay.delivery.content import NoRoom
from relay.delivery.handovers import Handovers
from relay.delivery.large_mails import Busy, LargeMails
from relay.delivery.leaving import leaving
from relay.delivery.mailbox import address_of
from relay.delivery.outbound_http import RefusedUrlError, UnavailableError
from relay.delivery.outcome import Failed, Outcome, Verdict
from relay.delivery.pace import Pace, Rest
from relay.delivery.provider import Handover, Provider
from relay.delivery.recipients import Progress, progress_of
from relay.delivery.records import Records
from relay.delivery.regions import Regions
from relay.delivery.row import OutgoingEmail
from relay.delivery.sandbox import simulation_of
from relay.delivery.tracking import Tracking
from relay.delivery.unclear import Decision, Unclear
from relay.postgres.closed_rows import UnsentRow
from relay.postgres.left_rows import UNCLEAR, UNCLEAR_TEXT
from relay.postgres.outgoing import Outgoing
from relay.postgres.sending_facts import MailAsked, SendingDomain
from relay.postgres.sent_rows import Event
from relay.redis.claim_states import HANDING_OVER, SENT

log = structlog.get_logger(__name__)

DEFAULT_REGION: Final = "us-east-1"
#: Seconds after which a mail is tried again that other large mails are before, and one that the spool has no room for.
_BUSY_SECONDS: Final = 15.0
_NO_ROOM_SECONDS: Final = 30.0

# A series that begins with its first event hides that event from rate().
for _outcome in (
    *("sent", "bounced", "failed", "delayed", "put_back", "suppressed", "abandoned", "unrecorded", "held"),
    "passed_over",
):
    metrics.DELIVERIES.labels(_outcome)
for _simulated in ("delivered", "bounced", "complained", "suppressed"):
    metrics.DELIVERIES.labels(f"simulated_{_simulated}")
for _result in ("sent", "failed"):
    metrics.DELIVERY_SEND_SECONDS.labels(_result)


class Deliverer:
    """Delivers claimed rows, for any number of greenlets.

    `max_attempts`: how often a mail is tried that fails in a way that may pass. `records_sent`: whether an event `sent`
    is recorded here for a mail of this domain. `pause`: called with the seconds for which nothing should be tried.
    `handovers`: gets each step. `unclear`: decides on mails that the provider may have.
    `pace`: what each mail waits for; None: none does.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        provider: Provider,
        *,
        max_attempts: int,
        records_sent: Callable[[SendingDomain | None], bool],
        tracking: Tracking | None,
        large_mails: LargeMails,
        handovers: Handovers,
        unclear: Unclear,
        pause: Callable[[float], None],
        pace: Pace | None = None,
    ) -> None:
        self._outgoing = outgoing
        self._provider = provider
        self._max_attempts = max_attempts
        self._records_sent = records_sent
        self._tracking = tracking
        self._large_mails = large_mails
        self._handovers = handovers
        self._unclear = unclear
        self._pace = pace
        self._regions = Regions(pace)
        self._records = Records(
            outgoing,
            provider=provider.name,
            max_attempts=max_attempts,
            handovers=handovers,
            rest=self._regions.all_rest,
            pause=pause,
        )

    def deliver(self, email: OutgoingEmail) -> None:
        """Sends the mail and records what became of it. Raises PostgresUnavailable where that can't be recorded."""
        began = time.monotonic()
        metrics.DELIVERY_IN_FLIGHT.value += 1
        self._handovers.begin(email.id)
        try:
            try:
                outcome = self._outcome(email)
            except PostgresUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - logged there
                outcome = self._after_bug(email, error)
            self._handovers.end(email.id)
        finally:
            self._handovers.leave(email.id)
            metrics.DELIVERY_IN_FLIGHT.value -= 1
        metrics.DELIVERIES.labels(outcome).inc()
        log.info("delivery", email_id=email.id, outcome=outcome, seconds=round(time.monotonic() - began, 4))

    def _after_bug(self, email: OutgoingEmail, error: Exception) -> str:
        """An attempt is used up, or the row would be tried for ever. Raises `error` where the provider has the mail."""
        state = self._handovers.state(email.id)
        if state in ("", SENT):
            raise error
        log.exception("unexpected_error", email_id=email.id)
        failed = Failed(Verdict.PASSING, "InternalError", type(error).__name__)
        return self._records.failed(email, failed, self._progress(email), unclear=state == HANDING_OVER)

    def preview(self, email: OutgoingEmail, files: ExitStack) -> Composed | Failed | None:
        """The mail that would leave for a row, or why none would; None: no recipient is left.

        Its files are closed with `files`. Nothing is sent or recorded. Raises Busy, NoRoom and PostgresUnavailable.
        """
        email, domain, suppressed = self._looked_up(email)
        if suppressed and not email.recipients:
            return None
        return self._composed(email, domain, files)

    def _outcome(self, email: OutgoingEmail) -> str:
        simulation = simulation_of(email)
        if simulation is not None:
            self._unsent(email, simulation.status, simulation.events, addresses=email.to, reason=simulation.reason)
            return f"simulated_{simulation.status}"
        decided = self._decided(email) if email.unclear else None
        if decided is not None:
            return decided
        if len(email.recipients) > MAX_RECIPIENTS:
            # Before they are looked up: it may be tens of thousands.
            return self._records.failed(email, Failed(Verdict.PERMANENT, *TOO_MANY_RECIPIENTS), None)
        email, domain, suppressed = self._looked_up(email)
        region = self._provider.region or (domain.region if domain is not None else DEFAULT_REGION)
        configuration_set = domain.configuration_set if domain is not None else None
        sender = address_of(email.sender)
        rest = self._regions.wait(email.id, region, configuration_set, sender, user_id=email.user_id)
        if rest:
            return self._records.put_back(email, rest)
        progress = self._progress(email)
        if suppressed and not email.recipients and progress is None:
            self._unsent(email, "suppressed", [_suppressed_event(email.id, suppressed)])
            return "suppressed"
        try:
            with ExitStack() as files:
                composed = self._composed(email, domain, files)
                if isinstance(composed, Failed):
                    return self._records.failed(email, composed, progress)
                if suppressed:
                    self._outgoing.record(email.id, _suppressed_event(email.id, suppressed))
                handover = Handover(
                    email_id=email.id,
                    sender=composed.sender,
                    to=composed.to,
                    cc=composed.cc,
                    bcc=composed.bcc,
                    content=composed.content,
                    region=region,
                    configuration_set=configuration_set,
                    user_id=email.user_id,
                )
                if progress is not None:
                    handover = progress.narrowed(handover)
                    if not handover.recipients:
                        return self._records.finished(email, replace(progress, delayed=()))
                records_sent = self._records_sent(domain)
                answer = self._answer(email, handover, records_sent=records_sent)
                if isinstance(answer, float):
                    return self._records.put_back(email, answer)
                outcome = self._regions.judge(handover, answer)
                # It takes room while others are recorded with this one.
                del composed, handover
        except Busy:
            return self._records.put_back(email, _BUSY_SECONDS)
        except NoRoom as full:
            log.error("delivery_spool_full", code=full.code)
            return self._records.put_back(email, _NO_ROOM_SECONDS)
        return self._records.answered(email, answer, outcome, progress, records_sent=records_sent)

    def _unsent(
        self,
        email: OutgoingEmail,
        status: str,
        events: Sequence[Event],
        *,
        addresses: Sequence[str] = (),
        reason: str | None = None,
    ) -> None:
        """Records the end of a mail that no provider gets; see UnsentRow."""
        mark = self._outgoing.mark(email.id)
        self._outgoing.ended(
            UnsentRow(email.id, mark, status=status, events=events, addresses=addresses, reason=reason)
        )

    def _progress(self, email: OutgoingEmail) -> Progress | None:
        """Which recipients have the mail from an attempt before this one; None: none has."""
        return progress_of(self._outgoing.recipients_of(email.id, email.retries)) if email.retries else None

    def _answer(self, email: OutgoingEmail, handover: Handover, *, records_sent: bool) -> Outcome | float:
        """Hands the mail over. What the provider says, or the seconds for which the mail is put back instead."""
        if self._pace is not None:
            recipients = len(handover.recipients)
            permit = self._pace.wait(handover.region, email.user_id, recipients, handover.content.size)
            if isinstance(permit, Rest):
                if permit.kind not in (FAR, SHORT):
                    self._regions.rest_with_others(handover.region, permit.kind, permit.seconds)
                return permit.seconds
            permit.claim_lasts = partial(self._outgoing.may_leave, email.id)
            handover = handover.permitted(permit)
        put_off = self._put_off(email, handover, records_sent=records_sent)
        if put_off is not None:
            self._give_back_permit(handover)
            return put_off
        try:
            return self._send(handover)
        except TooLate as late:
            self._regions.withdraw(handover)
            self._handovers.answered(email.id, None)
            return late.seconds
        except BaseException as error:
            # Whatever it was: others would wait for minutes for what becomes of the mail that is tried after a rest.
            self._regions.withdraw(handover)
            if isinstance(error, Busy | NoRoom):
                self._give_back_permit(handover)
            raise

    def _give_back_permit(self, handover: Handover) -> None:
        if self._pace is not None:
            self._pace.unused(handover.region, len(handover.recipients))

    def _put_off(self, email: OutgoingEmail, handover: Handover, *, records_sent: bool) -> float | None:
        """Returns None when the mail is to be handed over now, else the seconds for which it is put back."""
        if not self._handovers.may_hand_over(email.id, records_sent=records_sent):
            log.warning("claim_too_old", email_id=email.id)
            return 0.0
        rest = self._regions.admit(handover)
        if rest:
            self._handovers.answered(email.id, None)
            return rest
        return None

    def _send(self, handover: Handover) -> Outcome:
        began = time.monotonic()
        outcome = self._provider.send(handover)
        result = "failed" if isinstance(outcome, Failed) else "sent"
        metrics.DELIVERY_SEND_SECONDS.labels(result).observe(time.monotonic() - began)
        if self._pace is not None:
            self._pace.told(handover.region, outcome)
        return outcome

    def _composed(self, email: OutgoingEmail, domain: SendingDomain | None, files: ExitStack) -> Composed | Failed:
        """The mail that leaves, or why none does. Its files, if there are any, are closed with `files`.

        Raises Busy, NoRoom and PostgresUnavailable.
        """
        if email.flaw is not None:
            return Failed(Verdict.PERMANENT, email.flaw.code, email.flaw.text)
        try:
            if not email.large and not any(each.path is not None for each in email.attachments):
                return leaving(email, bodies_of(email), self._tracking, domain)
            bodies, spool = files.enter_context(self._large_mails.opened(email))
            return self._large_mails.in_thread(lambda: leaving(email, bodies, self._tracking, domain, spool=spool))
        except (Busy, NoRoom, PostgresUnavailable):
            raise
        except Unsendable as unsendable:
            return Failed(Verdict.PERMANENT, unsendable.code, str(unsendable))
        except RefusedUrlError as refused:
            return Failed(Verdict.PERMANENT, "AttachmentRefused", str(refused))
        except UnavailableError as unavailable:
            return Failed(Verdict.PASSING, "AttachmentUnavailable", str(unavailable))
        except Exception as error:
            # A bug, and nothing has been handed over: the attempts run out, or the row would be tried for ever.
            log.exception("unexpected_error", email_id=email.id)
            return Failed(Verdict.PASSING, "InternalError", type(error).__name__)

    def _looked_up(self, email: OutgoingEmail) -> tuple[OutgoingEmail, SendingDomain | None, dict[str, str]]:
        """The mail without the recipients that are suppressed by now, its sender's domain, and those recipients.

        They may have been added since the mail was accepted.
        """
        if not email.user_id:
            return email, None, {}
        # Rows of REST may spell a domain otherwise than the relay's do.
        mailboxes = {address: mailbox_of(address_of(address)) for address in email.recipients}
        names = _spellings_of(domain_of(address_of(email.sender)).lower())
        facts = self._outgoing.facts(MailAsked(email.user_id, names=names, mailboxes=set(mailboxes.values())))
        suppressed = facts.suppressed
        if not suppressed:
            return email, facts.domain, {}

        def left(addresses: Sequence[str]) -> tuple[str, ...]:
            return tuple(address for address in addresses if mailboxes[address] not in suppressed)

        email = email.with_recipients(to=left(email.to), cc=left(email.cc), bcc=left(email.bcc))
        return email, facts.domain, suppressed

    def _decided(self, email: OutgoingEmail) -> str | None:
        """What became of a mail that the provider may have; None: it is sent again."""
        kept = self._records.kept(email)
        if kept is not None:
            return kept
        claimed = self._outgoing.mark(email.id) or datetime.now(UTC)
        match self._unclear.decide(email, self._max_attempts, claimed=claimed):
            case Decision.PROVEN:
                self._outgoing.sent(email.id, None)
                return "sent"
            case Decision.FAILED:
                return self._records.fail(email, max(1, email.retries), UNCLEAR, UNCLEAR_TEXT)
            case Decision.HELD:
                return "held"
            case _:
                return None


def _spellings_of(domain: str) -> tuple[str, ...]:
    """A domain as From has it (lower case), and as its row may have it: with A-labels or with U-labels."""
    if not domain:
        return ()
    if domain.isascii() and "xn--" not in domain:
        return (domain,)
    names = {domain}
    for convert in (idna.decode, lambda text: idna.encode(text).decode("ascii")):
        try:
            names.add(convert(domain).lower())
        except (idna.IDNAError, UnicodeError):
            continue
    return tuple(names)


def _suppressed_event(email_id: str, suppressed: dict[str, str]) -> Event:
    payload = {
        "email_id": email_id,
        "reason": "recipient_suppressed",
        "recipients": [{"email": address, "reason": reason} for address, reason in suppressed.items()],
        "recipient_count": len(suppressed),
    }
    return Event(type="suppressed", source_id=f"suppressed:{email_id}", payload=payload)
