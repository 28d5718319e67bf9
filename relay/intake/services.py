"""What the dialogue asks for: whether a key is valid, and where a message goes."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Final, Protocol

import gevent
import structlog

from relay.core import metrics
from relay.core.errors import Unavailable
from relay.core.outcomes import LoginFailure
from relay.intake.lookups import Lookups
from relay.intake.overruns import KeyOverruns
from relay.intake.parse_clock import ParseOverrun
from relay.smtp.submission import Login, Submission, Verdict

log = structlog.get_logger(__name__)

_OVERRUNS: Final = metrics.PARSE_OVERRUNS.labels("worker")


class Lane(Protocol):
    """A lane that messages take to the store."""

    def store(self, submission: Submission) -> Verdict:
        """Stores a message, or says why not."""


class IntakeServices:
    """What a `relay.smtp.session.Session` asks for.

    `small` takes messages that are in memory, unless it raises ParseOverrun; `large` those that are in a file, those
    that `small` gave up, and all of a key that this happens to again and again. `publish` gets each stored row once
    it is committed, and must return at once.
    """

    def __init__(self, lookups: Lookups, small: Lane, large: Lane, publish: Callable[[str], None]) -> None:
        self._lookups = lookups
        self._small = small
        self._large = large
        self._publish = publish
        self._overruns = KeyOverruns()

    def authenticate(self, password: str) -> Login | LoginFailure:
        """The login that an API key opens: WRONG_KEY where there is none, UNAVAILABLE where that is unknown now."""
        token = password.strip()
        if not token:
            return LoginFailure.WRONG_KEY
        token_hash = sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        try:
            key = self._lookups.api_key(token_hash)
        except Unavailable:
            return LoginFailure.UNAVAILABLE
        if key is None:
            return LoginFailure.WRONG_KEY
        self._lookups.used(key)
        return Login(token_hash, key)

    def submit(self, submission: Submission) -> Verdict:
        """Stores a message, or says why not; its jobs are on their way when a 250 comes back."""
        elsewhere = submission.body.spooled or self._overruns.keeps_out(submission.login.key.id)
        # Behind all commands that have arrived: messages that are parsed one after the other find the processor's
        # caches warm, which saves 2 % of the CPU of a small one.
        gevent.sleep(0)
        verdict = self._large.store(submission) if elsewhere else self._store_here(submission)
        for email_id in verdict.stored:
            self._publish(email_id)
        if verdict.reply.positive:
            self._lookups.used(submission.login.key)
        return verdict

    def _store_here(self, submission: Submission) -> Verdict:
        try:
            return self._small.store(submission)
        except ParseOverrun:
            _OVERRUNS.inc()
            kept_out = self._overruns.note(submission.login.key.id)
            log.warning(
                "parse_left_to_child",
                connection=submission.connection_id,
                octets=submission.body.size,
                key_kept_out=kept_out,
            )
        return self._large.store(submission)
