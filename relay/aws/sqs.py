"""An SQS queue, as far as sending to it goes: SendMessageBatch in the JSON protocol that boto3 itself speaks.

boto3 finds the credentials and the endpoint, and botocore signs. The call itself is made here (`relay.aws.https`), for
a fraction of the CPU that botocore's session or a boto3 client takes: it is paid for every ten messages that the relay
accepts, and `./scripts/bench --only publishing` tells how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import boto3
import orjson
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, HTTPClientError
from botocore.httpsession import URLLib3Session, get_cert_path
from botocore.utils import get_environ_proxies

from relay.aws.https import CALL_ERRORS, HttpsClient, host_field
from relay.core.errors import QueueUnavailable

#: Entries that one SendMessageBatch takes.
MAX_ENTRIES: Final = 10

Entry = dict[str, Any]


class Queue:
    """Sends to one queue. Making it takes 0.1 s of CPU, and may ask the machine's metadata service for credentials."""

    def __init__(self, url: str, region: str, *, connect_seconds: float = 2.0, read_seconds: float = 5.0) -> None:
        """Raises QueueUnavailable when there are no credentials or no endpoint."""
        self.url = url
        try:
            session = boto3.session.Session(region_name=region)
            self._credentials = session.get_credentials()
            if self._credentials is None:
                raise QueueUnavailable("NoCredentials")
            # Only to learn where it would go: AWS_ENDPOINT_URL and its kin, profiles, FIPS, dual stack.
            client = session.client("sqs", config=Config(connect_timeout=connect_seconds, read_timeout=read_seconds))
            self._endpoint = client.meta.endpoint_url.rstrip("/") + "/"
            self._region = client.meta.region_name
            client.close()
            bundle = session._session.get_config_variable("ca_bundle")
        except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise QueueUnavailable(type(error).__name__) from None
        proxies = get_environ_proxies(self._endpoint)
        try:
            self._calls: HttpsClient | _ProxiedCalls
            if self._endpoint.partition(":")[0] in proxies:
                self._calls = _ProxiedCalls(self._endpoint, proxies, bundle, (connect_seconds, read_seconds))
            else:
                self._calls = HttpsClient(
                    self._endpoint,
                    cafile=bundle or get_cert_path(True),
                    connect_seconds=connect_seconds,
                    read_seconds=read_seconds,
                )
            self._host = host_field(self._endpoint)
        except (ValueError, OSError) as error:
            raise QueueUnavailable(type(error).__name__) from None

    @property
    def fifo(self) -> bool:
        """Whether entries need MessageGroupId and MessageDeduplicationId."""
        return self.url.endswith(".fifo")

    def send(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Sends at most MAX_ENTRIES, each with an `Id` of its own. Returns those that failed: Id → code.

        Raises QueueUnavailable when all failed together; they may have been taken all the same.
        """
        answer = self._call("SendMessageBatch", {"QueueUrl": self.url, "Entries": entries})
        taken = {str(entry.get("Id")) for entry in answer.get("Successful") or ()}
        codes = {str(entry.get("Id")): str(entry.get("Code")) for entry in answer.get("Failed") or ()}
        return {entry["Id"]: codes.get(entry["Id"], "NotMentioned") for entry in entries if entry["Id"] not in taken}

    def probe(self) -> None:
        """Asks what can be asked without sending anything: is the queue there, and may it be sent to.

        Raises QueueUnavailable. SQS refuses a batch without entries, after it has looked at the caller's rights. That
        the queue is there is asked for by itself, where the caller may ask that.
        """
        try:
            self._call("GetQueueAttributes", {"QueueUrl": self.url, "AttributeNames": ["QueueArn"]})
        except QueueUnavailable as unavailable:
            if "AccessDenied" not in unavailable.code:
                raise
        try:
            self._call("SendMessageBatch", {"QueueUrl": self.url, "Entries": []})
        except QueueUnavailable as unavailable:
            if "EmptyBatchRequest" not in unavailable.code:
                raise

    def _call(self, action: str, parameters: Mapping[str, object]) -> dict[str, Any]:
        """The answer to one call. Raises QueueUnavailable."""
        body = orjson.dumps(parameters)
        request = AWSRequest(
            "POST",
            self._endpoint,
            data=body,
            # botocore would find out the first and the last by itself, at length.
            headers={
                "Host": self._host,
                "Content-Type": "application/x-amz-json-1.0",
                "X-Amz-Target": f"AmazonSQS.{action}",
                "X-Amz-Content-SHA256": sha256(body).hexdigest(),
            },
        )
        try:
            SigV4Auth(self._credentials.get_frozen_credentials(), "sqs", self._region).add_auth(request)
            status, content = self._calls.post(body, request.headers)
        except (BotoCoreError, HTTPClientError, *CALL_ERRORS) as error:
            raise QueueUnavailable(type(error).__name__) from None
        answer = _object(content)
        if status != 200:
            raise QueueUnavailable(str(answer.get("__type", f"HTTP{status}")).rpartition("#")[2])
        return answer

    def close(self) -> None:
        """Closes the connections that are idle."""
        self._calls.close()


class _ProxiedCalls:
    """The same as Calls through an HTTP proxy, by botocore's own session, which knows proxies of every kind."""

    def __init__(
        self, endpoint: str, proxies: Mapping[str, str], bundle: str | None, seconds: tuple[float, float]
    ) -> None:
        self._endpoint = endpoint
        self._session = URLLib3Session(verify=bundle or True, proxies=dict(proxies), timeout=seconds)

    def post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Raises HTTPClientError."""
        response = self._session.send(AWSPreparedRequest("POST", self._endpoint, headers, body, False))
        return response.status_code, response.content

    def close(self) -> None:
        self._session.close()


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
