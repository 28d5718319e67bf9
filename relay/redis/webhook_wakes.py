"""A word from each process that records events to the delivery worker: deliveries of webhooks are due.

It makes them come at once and not with the next look; with their ids also where so much is pending that a look does not
see all of it. Without Redis, or where a word gets lost, they come with a look. It is a list and no channel: the rights
of a Redis user cover keys, and no channels (docs/rights.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import gevent
import redis
import structlog

from config import redaction
from relay.core.ids import is_uuid
from relay.redis import keys
from relay.redis.endpoint import Endpoint, RedisConnection
from relay.redis.link import RedisLink
from relay.redis.protocol import RedisReply

log = structlog.get_logger(__name__)

#: Words that are kept: one for each process that may listen. They are of no use after some seconds.
_KEPT: Final = 8
_KEPT_SECONDS: Final = 10
#: Ids of one word. Where there are more, the word says only that there is something.
_MOST_IDS: Final = 100
_NO_IDS: Final = b"1"
#: Seconds that a listener waits for a word at a time, and that it gives the server for its answer.
_WAIT_SECONDS: Final = 20
_ANSWER_SECONDS: Final = 30.0
#: Seconds from a failure to the next try: the first pause and the longest.
_PAUSES: Final = (1.0, 30.0)


def post(link: RedisLink, delivery_ids: Sequence[str] = ()) -> None:
    """Says that deliveries may be due, and which ones where that is known. Never waits, never raises."""
    key = keys.WEBHOOK_WAKES_KEY
    word = ",".join(delivery_ids).encode("ascii") if 0 < len(delivery_ids) <= _MOST_IDS else _NO_IDS
    link.post([("RPUSH", key, word), ("LTRIM", key, -_KEPT, -1), ("EXPIRE", key, _KEPT_SECONDS)])


class WakeListener:
    """Waits for such words, on a connection that does nothing else."""

    def __init__(
        self, url: str, *, verify_tls: bool, wake: Callable[[], None], name: Callable[[Sequence[str]], None]
    ) -> None:
        """For each word `name` is called with the ids of deliveries, or `wake` where it has none. Raises ValueError for
        a URL that is none.
        """
        self._endpoint = Endpoint(url, verify_tls=verify_tls, timeout=_ANSWER_SECONDS)
        self._wake = wake
        self._name = name

    def listen(self) -> None:
        """Works until it is killed."""
        pause, longest = _PAUSES
        while True:
            connection = self._endpoint.connection()
            try:
                connection.connect()
                while True:
                    reply = self._next(connection)
                    if reply is not None:
                        self._heard(reply)
                    pause = _PAUSES[0]
            except (redis.RedisError, OSError) as error:
                if pause == _PAUSES[0]:
                    log.warning("webhook_wakes_unavailable", cause=redaction.summary(error))
            finally:
                connection.disconnect()
            gevent.sleep(pause)
            pause = min(longest, 2 * pause)

    def _heard(self, reply: RedisReply) -> None:
        """`reply`: the list's key, and a word of it."""
        word = reply[-1] if isinstance(reply, list) else None
        ids = word.decode("ascii", "replace").split(",") if isinstance(word, bytes) else []
        if 0 < len(ids) <= _MOST_IDS and all(map(is_uuid, ids)):
            self._name(ids)
        else:
            self._wake()

    @staticmethod
    def _next(connection: RedisConnection) -> RedisReply:
        connection.send_command("BLPOP", keys.WEBHOOK_WAKES_KEY, _WAIT_SECONDS)
        return connection.read_response()
