"""The mails of a process that wait for permits of one account, their users in a circle.

A user that has had nothing to send comes next, with every second permit at most.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from itertools import takewhile

from relay.core.handoff import Handoff
from relay.delivery.permit import Permit, Rest


class WaitingMail:
    """A mail that waits for its permit."""

    __slots__ = ("done", "ready", "recipients", "since", "user_id")

    def __init__(self, user_id: str | None, recipients: int, *, ready: bool) -> None:
        self.user_id = user_id
        self.recipients = recipients
        #: Whether it leaves as soon as it has its permit: its connection is open, and waits.
        self.ready = ready
        self.since = time.monotonic()
        self.done: Handoff[Permit | Rest] = Handoff()


class Turns:
    """The mails that wait."""

    def __init__(self) -> None:
        #: By user. The next user in turn comes first.
        self._users: OrderedDict[str | None, deque[WaitingMail]] = OrderedDict()
        #: How many permits go to the users as they stand before one that had nothing to send may come next again.
        self._kept_turns = 0

    @property
    def waiting(self) -> bool:
        """Whether a mail waits."""
        return bool(self._users)

    def add(self, mail: WaitingMail) -> None:
        """A mail waits from now on; one that is ready, before the others of its user."""
        queue = self._users.get(mail.user_id)
        if queue is None:
            queue = self._users[mail.user_id] = deque()
            # A user that has had nothing to send comes next, with every second permit at most.
            if len(self._users) > 1 and not self._kept_turns:
                self._users.move_to_end(mail.user_id, last=False)
                self._kept_turns = 2
        if mail.ready:
            queue.appendleft(mail)
        else:
            queue.append(mail)

    def forget(self, mail: WaitingMail) -> None:
        """A mail waits no more."""
        if mail.done.settled:
            return
        mail.done.settled = True
        queue = self._users[mail.user_id]
        queue.remove(mail)
        if not queue:
            del self._users[mail.user_id]

    def put_back(self, since: float, rest: Rest) -> None:
        """Mails that have waited since before then, behind others, wait in Postgres: their claims grow old here, and
        all would be too old in the end for the permits that they get.
        """
        late = [
            mail
            for queue in self._users.values()
            for mail in takewhile(lambda mail: mail.ready or mail.since < since, queue)
            if not mail.ready
        ]
        for mail in late:
            self.forget(mail)
            mail.done.set(rest)

    def in_turn(self, most: int) -> list[WaitingMail]:
        """The mails that are next, of each user in turn; so many at most."""
        mails: list[WaitingMail] = []
        queues = [iter(queue) for queue in self._users.values()]
        while queues and len(mails) < most:
            left = []
            for queue in queues:
                mail = next(queue, None)
                if mail is not None:
                    mails.append(mail)
                    left.append(queue)
            queues = left
        return mails[:most]

    def first_to(self, recipients: int) -> WaitingMail | None:
        """The first mail of the next user whose first mail goes to so many recipients."""
        for queue in self._users.values():
            if queue[0].recipients == recipients:
                return queue[0]
        return None

    def settle(self, mail: WaitingMail, answer: Permit | Rest) -> None:
        """A mail has its answer: its user's turn is over."""
        queue = self._users.get(mail.user_id)
        if mail.done.settled or queue is None:
            return  # the process ends, or the mail waits no more
        queue.remove(mail)  # the first one as a rule
        if queue:
            self._users.move_to_end(mail.user_id)
        else:
            del self._users[mail.user_id]
        self._kept_turns = max(0, self._kept_turns - 1)
        mail.done.set(answer)

    def release(self, rest: Rest) -> None:
        """No mail waits any more."""
        self._kept_turns = 0
        while self._users:
            for mail in self._users.popitem(last=False)[1]:
                mail.done.set(rest)
