"""Which side records the event `sent` (contract section 6): SES, where its own will come back, or this worker."""

from __future__ import annotations

from typing import Literal

from relay.postgres.sent_rows import Event


def ours(
    rule: Literal["auto", "ses", "ours"], *, provider: str, events_topic: str | None, configuration_set: str | None
) -> bool:
    """Whether this worker records it for a mail. `rule`: the setting SMTP_RELAY_SES_SEND_EVENTS.

    `auto`: SES does where the domain names a configuration set and the topic of its events is known. A set may have no
    destination for them, which can't be seen from here: then `ours` is the rule to choose. Where SES does not get the
    mail its event can never come, whatever the rule is.
    """
    if provider != "ses" or rule == "ours":
        return True
    if rule == "ses":
        return False
    return not (configuration_set and events_topic)


def sent_event(email_id: str, provider: str, message_id: str) -> Event:
    """The event that this worker records for a mail that the provider has."""
    payload = {"email_id": email_id, "provider": provider, "message_id": message_id}
    return Event(type="sent", source_id=f"provider-sent:{email_id}", payload=payload)
