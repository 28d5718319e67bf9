"""The one error that crosses rooms: something of ours is not available, and may be later."""

from __future__ import annotations


class Unavailable(Exception):
    """A service that we depend on did not answer. The client always hears 4xx, never the text of the cause.

    `service` names it for the log (`postgres`, `redis`, `sqs`). `unclear` tells that the work may have been done all
    the same: a commit whose answer got lost.
    """

    def __init__(self, service: str, *, unclear: bool = False) -> None:
        super().__init__(service)
        self.service = service
        self.unclear = unclear
