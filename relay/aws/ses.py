"""Amazon SES, as far as sending raw content goes: SendEmail of API version 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import orjson
from pybase64 import b64encode

from relay.aws.https import RequestBody
from relay.aws.service import AwsService, CallError
from relay.core.frozen import frozen

_PATH: Final = "/v2/email/outbound-emails"
#: Seconds. SES takes a mail of 40 MB within some ten.
_OPEN_SECONDS: Final = 15.0
_CONNECT_SECONDS: Final = 5.0
_CALL_SECONDS: Final = 60.0
#: Octets a second at which a large body is sent at least. 56 MB, the most that there can be, have two minutes: a longer
#: call would not end within the lease of its claim (relay.postgres.leases).
_LEAST_RATE: Final = 1_000_000


#: What stands before the mail in a request.
_BEFORE: Final = b'{"Content":{"Raw":{"Data":"'


class SesError(Exception):
    """SES did not say yes. `status` 0: it did not say anything. `began`: it may have the mail all the same.

    `code` is SES's name of the error, or the library's; `message` is SES's text, for the row alone.
    """

    def __init__(self, status: int, code: str, message: str, *, began: bool) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.began = began


class Ses:
    """SES in one region. Every mail is handed over once."""

    def __init__(self, region: str) -> None:
        self._service = AwsService(
            "sesv2",
            region,
            path=_PATH,
            open_seconds=_OPEN_SECONDS,
            connect_seconds=_CONNECT_SECONDS,
            call_seconds=_CALL_SECONDS,
        )

    def send(
        self,
        content: bytes | RequestBody,
        destination: Mapping[str, Sequence[str]],
        *,
        tags: Mapping[str, str],
        configuration_set: str | None,
        ready: Callable[[], None] | None = None,
    ) -> str:
        """Sends a mail to `destination` ({ToAddresses, CcAddresses, BccAddresses}). Returns SES's MessageId.

        `ready`: called right before the first octet leaves. Raises SesError, and what going through `content` or
        `ready` raises: SES has nothing of the mail then.
        """
        rest: dict[str, object] = {
            "Destination": destination,
            "EmailTags": [{"Name": name, "Value": value} for name, value in tags.items()],
        }
        if configuration_set:
            rest["ConfigurationSetName"] = configuration_set
        after = b'"}},' + orjson.dumps(rest)[1:]
        body: bytes | _LargeRequest
        if isinstance(content, bytes):
            # perf: 2 µs for 43 KB of raw content, and 45 µs with the standard library, which has no SIMD:
            # python -m timeit -s 'from pybase64 import b64encode; m = bytes(43000)' 'b64encode(m)'
            body, more_seconds = b"".join((_BEFORE, b64encode(content), after)), 0.0
        else:
            body = _LargeRequest(content, after)
            more_seconds = body.size / _LEAST_RATE
        try:
            fields = {"Content-Type": "application/json"}
            response = self._service.call(body, fields, more_seconds=more_seconds, ready=ready)
        except CallError as error:
            raise SesError(0, error.code, "no answer from SES", began=error.unclear) from None
        message_id = response.document.get("MessageId")
        if response.status == 200 and isinstance(message_id, str):
            return message_id
        message = str(response.document.get("message") or response.document.get("Message") or "")
        raise SesError(response.status, response.code, message, began=response.status >= 500)

    def close(self) -> None:
        """Closes the connections that are idle."""
        self._service.close()


@frozen
class _LargeRequest:
    """A request whose mail is read, and made Base64, piece by piece."""

    content: RequestBody
    after: bytes

    @property
    def size(self) -> int:
        """See RequestBody."""
        return len(_BEFORE) + (self.content.size + 2) // 3 * 4 + len(self.after)

    def pieces(self) -> Iterator[bytes]:
        """See RequestBody."""
        yield _BEFORE
        carried = b""
        for piece in self.content.pieces():
            octets = carried + piece
            whole = len(octets) - len(octets) % 3
            carried = octets[whole:]
            yield b64encode(octets[:whole])
        yield b64encode(carried) + self.after
