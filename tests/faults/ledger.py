"""The books: what clients were told, beside what is in Postgres and in the queue."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import orjson

from scripts.database import query
from tests.faults.load import Fate, Mail


@dataclass(slots=True)
class Books:
    """What came of a load. Numbers of messages, unless it says otherwise."""

    mails: int = 0
    attempts: int = 0
    #: Replies 250 that clients saw.
    replies_250: int = 0
    rows: int = 0
    jobs: int = 0
    #: A 250 whose row is not there, and recipients of a message answered by 250 who are in no row.
    lost: list[str] = field(default_factory=list)
    #: Recipients who would get a message more than once, though it has an idempotency key.
    duplicates: list[str] = field(default_factory=list)
    #: The same of messages that only their Message-ID makes known, which takes a Redis that forgets nothing.
    copies: list[str] = field(default_factory=list)
    #: Rows of messages that no client saw a 250 for, but which the relay may have stored as far as the client knows.
    rows_without_250: int = 0
    #: The same, where the client was told for certain that there is none.
    unexplained: list[str] = field(default_factory=list)
    rows_without_job: list[str] = field(default_factory=list)
    #: Jobs beyond the first of a row, which do no harm.
    further_jobs: int = 0
    #: Jobs of rows that are not there.
    jobs_without_row: list[str] = field(default_factory=list)
    #: Messages that were never answered by 250 though their clients kept trying.
    never_accepted: int = 0

    def check(self, *, redis_forgot: bool = False) -> None:
        """Raises AssertionError where a promise was broken. `redis_forgot`: what it held was lost on the way."""
        assert not self.lost, self
        assert not self.duplicates, self
        assert redis_forgot or not self.copies, self
        assert not self.unexplained, self
        assert not self.rows_without_job, self
        assert not self.jobs_without_row, self
        assert self.replies_250, self

    def add(self, other: Books) -> None:
        """Takes the sum of both."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def audit(mails: Sequence[Mail], database_url: str, jobs: Iterable[str] | None) -> Books:
    """Compares. `jobs`: email ids of the jobs in the queue; None: there is no queue."""
    rows = query(database_url, 'SELECT id::text, subject, "to" || cc || bcc FROM emails')
    by_number: dict[str, list[tuple[str, list[str]]]] = {}
    for email_id, subject, recipients in rows:
        by_number.setdefault(str(subject), []).append((str(email_id), list(recipients)))  # type: ignore[call-overload]
    books = Books(mails=len(mails), rows=len(rows))
    for mail in mails:
        _audit_mail(mail, by_number.pop(str(mail.number), []), books)
    books.unexplained += [f"a row that nobody sent: {subject}" for subject in by_number]
    if jobs is not None:
        counted = Counter(jobs)
        ids = {str(email_id) for email_id, _, _ in rows}
        books.jobs = counted.total()
        books.rows_without_job = sorted(ids - counted.keys())
        books.jobs_without_row = sorted(counted.keys() - ids)
        books.further_jobs = sum(count - 1 for count in counted.values())
    return books


def _audit_mail(mail: Mail, rows: list[tuple[str, list[str]]], books: Books) -> None:
    ids = {email_id for email_id, _ in rows}
    books.attempts += len(mail.attempts)
    books.replies_250 += sum(attempt.fate is Fate.ACCEPTED for attempt in mail.attempts)
    books.lost += [f"{mail.number}: {email_id} was promised" for email_id in mail.accepted_as - ids]
    reached = Counter(recipient for _, recipients in rows for recipient in recipients)
    if mail.accepted_as:
        books.lost += [f"{mail.number}: {person} has no row" for person in mail.recipients if not reached[person]]
    elif rows:
        books.rows_without_250 += 1
        if not mail.may_have_row:
            books.unexplained.append(f"{mail.number}: {[attempt.reply for attempt in mail.attempts]}")
    else:
        books.never_accepted += 1
    if mail.recognisable:
        repeated = [f"{mail.number}: {person}" for person, count in reached.items() if count > 1]
        (books.duplicates if mail.keyed else books.copies).extend(repeated)


def published(endpoint: str) -> list[str]:
    """Email ids of all jobs that moto's server ever took, in one call. Raises OSError while it is away.

    A receiver would be right, too, but moto needs hours for thousands of messages.
    """
    with urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=30) as answer:
        messages = orjson.loads(answer.read()).get("sqs", {}).get("Message", [])
    return [orjson.loads(message["body"])["emailId"] for message in messages]
