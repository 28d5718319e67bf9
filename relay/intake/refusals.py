"""The replies to messages that are refused for what they are."""

from __future__ import annotations

from relay.core.records import ApiKey
from relay.mail import Fault, Unusable
from relay.smtp import replies
from relay.smtp.replies import Reply


def wrong_domain(key: ApiKey) -> Reply:
    """The reply to a From address outside the domain that the key is restricted to."""
    return replies.wrong_domain(key.domain or "")


def refusal(unusable: Unusable) -> Reply:
    """The reply to a message that is at fault itself."""
    match unusable.fault:
        case Fault.NO_FROM:
            return replies.NO_SENDER
        case Fault.BAD_TAG:
            return replies.bad_tag(unusable.detail)
        case Fault.BAD_IDEMPOTENCY_KEY:
            return replies.bad_idempotency_key(unusable.detail)
        case Fault.UTF8_LOCAL_PART:
            return replies.UTF8_LOCAL_PART
        case Fault.ATTACHMENTS_TOO_LARGE:
            return replies.ATTACHMENTS_TOO_LARGE
        case Fault.TOO_MANY_ADDRESSES:
            return replies.TOO_MANY_ADDRESSES
        case Fault.HEADER_TOO_LARGE:
            return replies.HEADER_TOO_LARGE
