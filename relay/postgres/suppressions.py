"""Addresses that must get no mail of a user, as Postgres has them (contract section 3)."""

from __future__ import annotations

from collections.abc import Collection

from relay.core.spellings import spellings
from relay.postgres.driver import Cursor


def find(cursor: Cursor, user_id: str, mailboxes: Collection[str]) -> dict[str, str]:
    """Which of these mailboxes (comparison form) are suppressed for this user, however spelled → reason."""
    spelled = {spelling: mailbox for mailbox in mailboxes for spelling in spellings(mailbox)}
    cursor.execute(
        "SELECT email, coalesce(reason, '') FROM email_suppressions WHERE user_id = %s AND email = ANY (%s)",
        (user_id, list(spelled)),
    )
    return {spelled[found]: reason for found, reason in cursor if found in spelled}
