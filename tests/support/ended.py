"""How claims end in tests."""

from __future__ import annotations

from relay.postgres.failed_rows import FailedRow
from relay.postgres.outgoing import Outgoing
from relay.postgres.sent_rows import Event


def failed_row(worker: Outgoing, email_id: str, *, seconds: float | None) -> FailedRow:
    """Of the first attempt of a mail that this worker has claimed; see FailedRow."""
    kind = "failed" if seconds is None else "delayed"
    event = Event(kind, f"{kind}:{email_id}", {})
    mark = worker.mark(email_id)
    return FailedRow(email_id, mark, event, attempt=1, seconds=seconds, code="Code", message="text")
