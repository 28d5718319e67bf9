"""Which recipients of a mail have it and which do not, from one attempt to the next.

A provider may take a mail for some of its recipients. A row has no place for that (contract section 3), so it stands in
the event that each attempt but the last one records anyway: `delayed`, found by its source id. What is known of it:

    recipients.delayed      those that are tried again: the next attempt is for these alone, with the same header
    recipients.bounced      those that were refused for good
    recipients.message_id   the provider's name for what the others have

After the last attempt the row is `bounced`, and an event names those that were refused, in the form of SES's bounces.
No address is suppressed by that: a smart host that is set up wrongly refuses any address.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from relay.core.frozen import frozen
from relay.delivery.outcome import Failed, RefusedRecipient, Sent, Verdict
from relay.delivery.provider import Handover
from relay.postgres.sent_rows import Event

#: One recipient in the form of SES's bounces and delays.
Entry = Mapping[str, str]

PERMANENT: Final = "Permanent"
PASSING: Final = "Transient"


@frozen
class Progress:
    """Some have the mail, which the provider knows by `message_id`; `delayed` may get it yet, `bounced` will not."""

    message_id: str
    delayed: Sequence[Entry]
    bounced: Sequence[Entry]

    def after(self, sent: Sent) -> Progress:
        """What is known once those of `delayed` have been tried, and some got it."""
        return Progress(
            self.message_id,
            delayed=[_entry(each) for each in sent.refused if each.passing],
            bounced=[*self.bounced, *(_entry(each) for each in sent.refused if not each.passing)],
        )

    def given_up(self, failed: Failed) -> Progress:
        """What is known where none of `delayed` got it, and they are not tried again."""
        said = {"status": _status(failed.code), "diagnosticCode": _diagnostic(failed.code, failed.message)}
        late = [{**entry, **said} for entry in self.delayed]
        return Progress(self.message_id, delayed=late, bounced=self.bounced)

    def narrowed(self, handover: Handover) -> Handover:
        """The mail for those recipients alone that may get it yet."""
        waiting = {entry["emailAddress"] for entry in self.delayed}
        to, cc, bcc = (
            [address for address in addresses if address in waiting]
            for addresses in (handover.to, handover.cc, handover.bcc)
        )
        return replace(handover, to=to, cc=cc, bcc=bcc)

    def failure(self) -> Failed:
        """What the row says while some are waiting."""
        first = self.delayed[0]
        return Failed(Verdict.PASSING, first["status"], first["diagnosticCode"])

    def codes(self) -> list[str]:
        """The status of each recipient that was refused, for the log."""
        return sorted(entry["status"] for entry in (*self.bounced, *self.delayed))

    def payload(self) -> dict[str, object]:
        """For the event `delayed`."""
        return {"delayed": self.delayed, "bounced": self.bounced, "message_id": self.message_id}

    def bounces(self, email_id: str, provider: str) -> list[Event]:
        """The events that name the refused recipients: for good, and until the last attempt."""
        timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return [
            Event(
                type="bounced",
                source_id=f"provider-bounced:{email_id}:{kind.lower()}",
                payload={
                    "email_id": email_id,
                    "provider": provider,
                    "bounceType": kind,
                    "bounceSubType": "General",
                    "bouncedRecipients": [{**entry, "action": "failed"} for entry in entries],
                    "timestamp": timestamp,
                },
            )
            for kind, entries in ((PERMANENT, self.bounced), (PASSING, self.delayed))
            if entries
        ]


def begun(sent: Sent) -> Progress:
    """What is known after the first attempt by which some got the mail."""
    return Progress(sent.message_id, delayed=(), bounced=()).after(sent)


def progress_of(document: object) -> Progress | None:
    """What `Progress.payload` made, as the database has it; None for anything else."""
    if not isinstance(document, dict) or not isinstance(document.get("message_id"), str):
        return None
    return Progress(
        document["message_id"], delayed=_entries(document.get("delayed")), bounced=_entries(document.get("bounced"))
    )


def _entries(value: object) -> list[Entry]:
    entries = value if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("emailAddress"), str)]


def _entry(refused: RefusedRecipient) -> Entry:
    diagnostic = _diagnostic(refused.code, refused.message)
    return {"emailAddress": refused.address, "status": _status(refused.code), "diagnosticCode": diagnostic}


def _status(code: str) -> str:
    """An enhanced status code (RFC 3463), as a report on a delivery has to have one."""
    basic, _, enhanced = code.partition(" ")
    if enhanced:
        return enhanced
    return f"{basic[0]}.0.0" if basic.isdecimal() else "4.0.0"


def _diagnostic(code: str, message: str) -> str:
    return f"smtp; {message or code}"[:1000]
