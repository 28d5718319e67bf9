"""Amazon SES, as far as sending raw content goes: SendEmail of API version 2, one try a call.

boto3 finds the credentials and the endpoint, and botocore signs. Its own client tries three times by itself, after
lost answers too: copies of a mail that nobody asked for.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import boto3.session
import orjson
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path

from relay.aws import credentials
from relay.aws.https import CALL_ERRORS, HttpsClient, NotSentError, host_field

_PATH: Final = "/v2/email/outbound-emails"
#: Seconds. SES takes a mail of 40 MB within some ten.
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
    """SES in one region. Making it takes 0.1 s of CPU, and may ask the machine's metadata service for credentials."""

    def __init__(self, region: str) -> None:
        """Raises SesError when there are no credentials or no endpoint."""
        try:
            credentials.bound_programs()
            session = boto3.session.Session(region_name=region)
            self._credentials: Any = session.get_credentials()
            if self._credentials is None:
                raise SesError(0, "NoCredentials", "no AWS credentials were found", began=False)
            client = session.client("sesv2", config=Config(connect_timeout=_CONNECT_SECONDS))
            endpoint = client.meta.endpoint_url.rstrip("/")
            client.close()
            bundle = session._session.get_config_variable("ca_bundle")
            self._url = endpoint + _PATH
            self._region = region
            self._host = host_field(self._url)
            self._https = HttpsClient(
                self._url,
                cafile=bundle or get_cert_path(True),
                connect_seconds=_CONNECT_SECONDS,
                call_seconds=_CALL_SECONDS,
            )
        except SesError:
            raise
        except Exception as error:  # noqa: BLE001 - botocore asks files, programs and services of others
            raise SesError(0, type(error).__name__, "the endpoint of SES can't be used", began=False) from None

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
        request = AWSRequest(
            "POST",
            self._url,
            data=body,
            headers={
                "Host": self._host,
                "Content-Type": "application/json",
                "X-Amz-Content-SHA256": sha256(body).hexdigest(),
            },
        )
        try:
            SigV4Auth(self._credentials.get_frozen_credentials(), "ses", self._region).add_auth(request)
        except BotoCoreError as error:
            raise SesError(0, type(error).__name__, "no credentials just now", began=False) from None
        try:
            answer = self._https.ask(body, request.headers)
        except NotSentError as error:
            raise SesError(0, error.code, "SES can't be reached", began=False) from None
        except CALL_ERRORS as error:
            raise SesError(0, type(error).__name__, "no answer from SES", began=True) from None
        document = _object(answer.content)
        if answer.status == 200 and isinstance(document.get("MessageId"), str):
            return str(document["MessageId"])
        code = answer.error_type or str(document.get("__type") or document.get("code") or f"HTTP{answer.status}")
        message = str(document.get("message") or document.get("Message") or "")
        raise SesError(answer.status, code.rpartition("#")[2].partition(":")[0], message, began=answer.status >= 500)

    def close(self) -> None:
        """Closes the connections that are idle."""
        self._https.close()


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
