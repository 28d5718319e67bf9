"""What the settings of links and events come to: for `--check` of delivery worker and HTTP process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from config.settings import Settings
from relay.delivery.tracking import base_of_links
from relay.operator.finding import FAIL, OK, WARN, Finding

#: Characters that OpenSend wants in a secret.
SECRET_LENGTH: Final = 16
_ARN: Final = re.compile(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_.-]+")


def tracking(settings: Settings, *, unset: Finding, makes_links: bool) -> Iterator[Finding]:
    """TRACKING_SECRET, and where links lead. `unset`: what it means that there is no secret. `makes_links`: whether a
    program that has no base of links makes none."""
    secret = (settings.tracking_secret or "").strip()
    if not secret:
        yield unset
        return
    base = base_of_links(settings)
    if len(secret) < SECRET_LENGTH:
        text = f"TRACKING_SECRET is shorter than {SECRET_LENGTH} characters: OpenSend refuses it"
        yield Finding(WARN, "tracking", text)
    if base is None and makes_links:
        yield Finding(WARN, "tracking", "no base of links is set: only domains with a tracking subdomain are tracked")
    elif len(secret) >= SECRET_LENGTH:
        yield Finding(OK, "tracking", "TRACKING_SECRET is set" if base is None else f"links lead to {base}")


def topics(settings: Settings, *, unset: Finding, meaning: str) -> Iterator[Finding]:
    """SES_EVENTS_SNS_TOPIC_ARN, a finding each. `meaning`: of a topic that is one, a sentence with `{}` for it."""
    found = [topic.strip() for topic in (settings.ses_events_topic or "").split(",") if topic.strip()]
    if not found:
        yield unset
    for topic in found:
        if _ARN.fullmatch(topic):
            yield Finding(OK, "events", meaning.format(topic))
        else:
            text = f"SES_EVENTS_SNS_TOPIC_ARN has {topic!r}, which is not the ARN of an SNS topic"
            yield Finding(FAIL, "events", text)
