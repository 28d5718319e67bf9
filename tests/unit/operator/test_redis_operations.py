"""What `--check` says of a Redis to which no connection comes about, whenever that becomes known."""

from __future__ import annotations

from typing import cast

import pytest

from relay.core.errors import RedisUnavailable
from relay.operator.redis_operations import Operation, findings
from relay.redis.link import RedisLink


class _LinkThatFails:
    """A link that makes its connection for some calls, and then gives up. No server is as late as that each time."""

    failure = ""

    def __init__(self, *, after_calls: int) -> None:
        self.up = True
        self.error_replies: set[tuple[str, str]] = set()
        self._left = after_calls

    def call(self, *_command: object) -> None:
        self._left -= 1
        if self._left <= 0:
            self.up, self.failure = False, "SilentTls"
        raise RedisUnavailable("connecting")


@pytest.mark.parametrize("after_calls", [1, 2, 3, 4])
def test_a_connection_that_fails_late_is_one_line_without_an_operation(after_calls: int) -> None:
    link = _LinkThatFails(after_calls=after_calls)

    def works() -> bool:
        return bool(cast(RedisLink, link).call("EVAL"))

    operations = [Operation(name, "something would be lost", works) for name in ("scripts", "claims")]
    said = [finding.text for finding in findings(cast(RedisLink, link), operations, away="")]
    assert [text.partition(":")[0] for text in said] == ["TLS is not answered"]
