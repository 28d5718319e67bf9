"""Amazon SES, as far as sending raw content goes: SendEmail of API version 2."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from relay.aws.service import AwsService, CallError

_PATH: Final = "/v2/email/outbound-emails"
#: Seconds. SES takes a mail of 40 MB within some ten.
_OPEN_SECONDS: Final = 15.0
_CONNECT_SECONDS: Final = 5.0
_CALL_SECONDS: Final = 60.0


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
        octets: bytes,
        destination: Mapping[str, Sequence[str]],
        *,
        tags: Mapping[str, str],
        configuration_set: str | None,
    ) -> str:
        """Sends a mail to `destination` ({ToAddresses, CcAddresses, BccAddresses}). Returns SES's MessageId.

        Raises SesError.
        """
        rest: dict[str, Any] = {
            "Destination": destination,
            "EmailTags": [{"Name": name, "Value": value} for name, value in tags.items()],
        }
        if configuration_set:
            rest["ConfigurationSetName"] = configuration_set
        body = b"".join((b'{"Content":{"Raw":{"Data":"', b64encode(octets), b'"}},', orjson.dumps(rest)[1:]))
        try:
            response = self._service.call(body, {"Content-Type": "application/json"})
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
