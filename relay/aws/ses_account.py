"""What SES says of an account in one region: GetAccount of API version 2, by boto3, since it is asked once a minute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import boto3
import botocore.exceptions
import gevent
from botocore.config import Config

from relay.aws import credentials
from relay.aws.ses import SesError

if TYPE_CHECKING:
    from mypy_boto3_sesv2 import SESV2Client  # a module of the stubs alone

#: Seconds for connecting, for an answer, and for all of it with the look-up of credentials.
_CONNECT_SECONDS: Final = 3.0
_READ_SECONDS: Final = 5.0
_ALL_SECONDS: Final = 15.0


class SesAccount:
    """An account in one region. The client, which takes 0.1 s of CPU to make, is kept while it is of use."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._client: SESV2Client | None = None

    def ask(self) -> Mapping[str, object]:
        """The answer's document. Raises SesError."""
        with gevent.Timeout(_ALL_SECONDS) as limit:
            try:
                if self._client is None:
                    self._client = self._made()
                return self._client.get_account()
            except botocore.exceptions.ClientError as error:
                said = error.response.get("Error", {})
                status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
                # Credentials that were replaced in a file are looked up by a new client alone.
                self._client = None
                raise SesError(status, str(said.get("Code", "")), str(said.get("Message", "")), began=False) from None
            except gevent.Timeout as late:
                if late is not limit:
                    raise
                self._client = None
                raise SesError(0, "TimeoutError", "no answer from SES", began=False) from None
            except Exception as error:  # noqa: BLE001 - botocore asks files, programs and services of others
                self._client = None
                raise SesError(0, type(error).__name__, "no answer from SES", began=False) from None

    def _made(self) -> SESV2Client:
        credentials.bound_programs()
        config = Config(connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, retries={"total_max_attempts": 1})
        return boto3.session.Session(region_name=self._region).client("sesv2", config=config)
