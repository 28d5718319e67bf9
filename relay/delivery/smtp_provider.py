"""The provider `smtp`: any smart host, by SMTP (RFC 5321), over so many connections at a time.

Time limits. RFC 5321 section 4.5.3.2 wants minutes for each phase, and the lease of a claim (relay.postgres.leases) has
not so many for all of them together:

    connection, TLS, EHLO, AUTH     OPENING_SECONDS
    until the last octet is sent    DATA_SECONDS, all of the above and a turn for a connection included: a mail that is
                                    not complete is thrown away by the host, so nothing is unclear when this ends
    the answer to the end of data   until CALL_SECONDS after the beginning: the longest, since what comes later is lost,
                                    and the mail is sent twice
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from gevent.lock import BoundedSemaphore

from relay.core.errors import TooLate
from relay.core.supervision import run_once
from relay.delivery.large_mails import Busy
from relay.delivery.outcome import Outcome
from relay.delivery.provider import Handover
from relay.delivery.smart_host import NotOpened, SmartHost
from relay.delivery.smtp_client import SmtpConnection
from relay.delivery.smtp_connections import KeptConnections
from relay.delivery.smtp_outcome import of_broken, of_unopened
from relay.delivery.smtp_transactions import MailTransactions, Stale

#: Seconds from the beginning of a call: see above.
OPENING_SECONDS: Final = 30.0
DATA_SECONDS: Final = 85.0
CALL_SECONDS: Final = 145.0
#: Seconds for which a connection fewer is opened that the host has refused while it took mails on others.
FEWER_SECONDS: Final = 60.0


class _Full(Exception):
    """The host takes no further connection, and mails are on their way on others."""


class SmtpProvider:
    """Hands mails to one smart host. `connections`: at most so many are open.

    `repeats_unclear`: where the host has a mail for some recipients, and may have it for others, these are tried again;
    else they count as refused.
    """

    name = "smtp"
    region: str | None = "smtp"

    def __init__(self, host: SmartHost, *, connections: int, repeats_unclear: bool = True) -> None:
        self._host = host
        self._repeats_unclear = repeats_unclear
        self._places = BoundedSemaphore(connections)
        self._kept = KeptConnections()
        #: Mails that have a place.
        self._placed = 0

    def send(self, handover: Handover) -> Outcome:
        """As `relay.delivery.provider.Provider` says. Raises Busy where no connection becomes free, and TooLate."""
        began = time.monotonic()
        while True:
            if not self._places.acquire(timeout=max(0.0, began + DATA_SECONDS - OPENING_SECONDS - time.monotonic())):
                raise Busy
            self._placed += 1
            full = False
            try:
                return self._sent(handover, began)
            except _Full:
                full = True
            finally:
                self._placed -= 1
                if full:
                    run_once("smtp_connections", self._places.release, after=FEWER_SECONDS)
                else:
                    self._places.release()

    def close(self) -> None:
        """Closes the connections that are idle. All of them together wait for the host as long as one would."""
        self._kept.close()

    def _sent(self, handover: Handover, began: float) -> Outcome:
        connection = self._kept.take()
        if connection is not None:
            try:
                return self._over(connection, handover, began, kept=True)
            except Stale:
                pass
        try:
            connection = self._opened(began)
        except NotOpened as unopened:
            # A limit of the host is no fault: the mail waits for one of the connections that it has taken. Where TLS is
            # there from the start a reply without it is an SSLError.
            if (unopened.code.startswith("4") or unopened.code == "SSLError") and self._placed > 1:
                raise _Full from None
            return of_unopened(unopened)
        try:
            return self._over(connection, handover, began, kept=False)
        except Stale as stale:
            return of_broken(str(stale))

    def _opened(self, began: float) -> SmtpConnection:
        """A new connection, for a call that began then. Raises NotOpened."""
        return self._host.open(min(time.monotonic() + OPENING_SECONDS, began + DATA_SECONDS))

    def _over(self, connection: SmtpConnection, handover: Handover, began: float, *, kept: bool) -> Outcome:
        """Hands a mail over on a connection, which is kept or closed then. Raises Stale and TooLate."""
        transactions = MailTransactions(
            connection,
            self._host,
            handover,
            open_another=partial(self._opened, began),
            data_until=began + DATA_SECONDS,
            answer_until=began + CALL_SECONDS,
            kept=kept,
            repeats_unclear=self._repeats_unclear,
        )
        try:
            outcome = transactions.run()
        except TooLate:
            self._kept.keep(connection)
            raise
        except BaseException:
            transactions.connection.close()
            raise
        if transactions.usable:
            self._kept.keep(transactions.connection)
        else:
            transactions.connection.close()
        return outcome
