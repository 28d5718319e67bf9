"""How many mails of each user are on their way in a process: no user has all of its places.

One place in ten, and one at the least, is kept from a user that has all the others, wherever the mails come from: rows
that were found in Postgres, and jobs of the queue, whose user is unknown until their row is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping

from gevent.event import Event


class Shares:
    """The mails that are on their way, by user. `places`: how many there may be."""

    def __init__(self, places: int) -> None:
        self._most = max(1, places - max(1, places // 10))
        self._unknown = 0
        self._counts: dict[str | None, int] = {}
        self._changed = Event()

    @property
    def counts(self) -> Mapping[str | None, int]:
        """How many mails each user has, of users that have any. Mails of unknown users are left out."""
        return self._counts

    @property
    def limit(self) -> int:
        """How many mails one user may have: all mails of unknown users may be of that user."""
        return self._most - self._unknown

    @property
    def room(self) -> int:
        """How many mails of one user may follow, whichever user that is; 0 or less: none."""
        return self.limit - max(self._counts.values(), default=0)

    def wait(self) -> None:
        """Returns when there is room."""
        while self.room <= 0:
            self._changed.clear()
            self._changed.wait()

    def of(self, user: str | None) -> Share:
        """A mail of this user begins."""
        share = Share(self)
        share.belongs_to(user)
        return share

    def of_unknown(self) -> Share:
        """A mail begins whose user is not known yet."""
        return Share(self)

    def count_unknown(self, more: int) -> None:
        """For Share."""
        self._unknown += more
        self._changed.set()

    def count(self, user: str | None, more: int) -> None:
        """For Share."""
        self._counts[user] = self._counts.get(user, 0) + more
        if not self._counts[user]:
            del self._counts[user]
        self._changed.set()


class Share:
    """One mail that is on its way, until `end`."""

    __slots__ = ("_known", "_shares", "_user")

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._known = False
        self._user: str | None = None
        shares.count_unknown(1)

    @property
    def user(self) -> str | None:
        """Whose mail it is, as far as that is known."""
        return self._user

    def belongs_to(self, user: str | None) -> None:
        """Says the user, once it is known; more than once is the same as once."""
        if self._known:
            return
        self._known, self._user = True, user
        self._shares.count_unknown(-1)
        self._shares.count(user, 1)

    def end(self) -> None:
        """The mail is done with."""
        if self._known:
            self._shares.count(self._user, -1)
        else:
            self._shares.count_unknown(-1)
