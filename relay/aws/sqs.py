"""An SQS queue, as far as sending to it goes: SendMessageBatch in the JSON protocol that boto3 itself speaks.

boto3 finds the credentials and the endpoint, and botocore signs. The call itself is made here (`relay.aws.https`), for
a fraction of the CPU that botocore's session or a boto3 client takes: it is paid for every ten messages that the relay
accepts, and `./scripts/bench --only publishing` tells how much.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import boto3
import gevent
import orjson
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ProxyConnectionError,
)
from botocore.exceptions import SSLError as BotoSSLError
from botocore.httpsession import URLLib3Session, get_cert_path
from botocore.utils import get_environ_proxies
from gevent.lock import RLock

from relay.aws import credentials
from relay.aws.https import CALL_ERRORS, HttpsClient, NotSentError, host_field
from relay.core.errors import QueueUnavailable
from relay.core.frozen import frozen

#: Entries that one SendMessageBatch takes.
MAX_ENTRIES: Final = 10

Entry = dict[str, Any]


@frozen
class _Opened:
    """What calls need: who we are, and where they go."""

    credentials: Any
    region: str
    endpoint: str
    host: str
    client: HttpsClient | _ProxiedClient
    #: The moment of time.monotonic().
    since: float


class Queue:
    """Sends to one queue. Nothing is asked of anybody before the first call, nor in vain for ever: each call finds out
    anew what the one before could not, and what AWS no longer accepts is looked up again."""

    #: Seconds from one look-up to the next where AWS refuses what it found.
    trust_seconds = 60.0

    def __init__(
        self,
        url: str,
        region: str,
        *,
        open_seconds: float = 15.0,
        connect_seconds: float = 2.0,
        call_seconds: float = 7.0,
    ) -> None:
        """`open_seconds`: for credentials and endpoint, of which a program or a service may have to be asked;
        `connect_seconds`: for a connection to one address; `call_seconds`: for a whole call beside all that."""
        self.url = url
        self.open_seconds, self.connect_seconds, self.call_seconds = open_seconds, connect_seconds, call_seconds
        self._region = region
        self._opening = RLock()
        self._opened: _Opened | None = None

    @property
    def fifo(self) -> bool:
        """Whether entries need MessageGroupId and MessageDeduplicationId."""
        return self.url.endswith(".fifo")

    def open(self, seconds: float) -> None:
        """Looks up credentials and endpoint ahead of the first call, which takes 0.1 s of CPU.

        Raises QueueUnavailable, after so many seconds at the latest; then a call does it.
        """
        with _limited(seconds):
            self._open()

    def send(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Sends at most MAX_ENTRIES, each with an `Id` of its own. Returns those that failed: Id → code.

        Raises QueueUnavailable when all failed together; with `unclear` they may have been taken all the same.
        """
        status, answer = self._call("SendMessageBatch", {"QueueUrl": self.url, "Entries": entries})
        if status != 200:
            raise QueueUnavailable(_code(status, answer), unclear=status >= 500 and status != 503)
        taken = {str(entry.get("Id")) for entry in answer.get("Successful") or ()}
        codes = {str(entry.get("Id")): str(entry.get("Code")) for entry in answer.get("Failed") or ()}
        return {entry["Id"]: codes.get(entry["Id"], "NotMentioned") for entry in entries if entry["Id"] not in taken}

    def call(self, action: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """One action of SQS's API on this queue, tried once: its answer. Raises QueueUnavailable."""
        status, answer = self._call(action, {"QueueUrl": self.url, **parameters})
        if status != 200:
            raise QueueUnavailable(_code(status, answer), unclear=status >= 500 and status != 503)
        return answer

    def probe(self) -> None:
        """Asks what can be asked without sending anything: is the queue there, and may it be sent to.

        Raises QueueUnavailable. SQS refuses a batch without entries, after it has looked at the caller's rights. That
        the queue is there is asked for by itself, where the caller may ask that.
        """
        status, answer = self._call("GetQueueAttributes", {"QueueUrl": self.url, "AttributeNames": ["QueueArn"]})
        if status != 200 and "AccessDenied" not in _code(status, answer):
            raise QueueUnavailable(_code(status, answer))
        status, answer = self._call("SendMessageBatch", {"QueueUrl": self.url, "Entries": []})
        if status != 200 and "EmptyBatchRequest" not in _code(status, answer):
            raise QueueUnavailable(_code(status, answer))

    def await_answer(self) -> None:
        """Returns when an answer of the queue arrives, whatever it says, to a call that sends nothing.

        Raises QueueUnavailable.
        """
        status, answer = self._call("SendMessageBatch", {"QueueUrl": self.url, "Entries": []})
        if status >= 500:
            raise QueueUnavailable(_code(status, answer))

    def close(self) -> None:
        """Closes the connections that are idle."""
        if self._opened is not None:
            self._opened.client.close()

    def _call(self, action: str, parameters: Mapping[str, object]) -> tuple[int, dict[str, Any]]:
        """Status and document of the response to one call. Raises QueueUnavailable."""
        body = orjson.dumps(parameters)
        with _limited(self.open_seconds):
            opened = self._open()
            try:
                keys = opened.credentials.get_frozen_credentials()
            except Exception as error:  # noqa: BLE001 - as in _open
                expected = isinstance(error, (BotoCoreError, ClientError, OSError))
                if not expected or time.monotonic() - opened.since > self.trust_seconds:
                    # What these credentials were made of may not be there any more.
                    self._opened = None
                raise QueueUnavailable(_name(error)) from None
        request = AWSRequest(
            "POST",
            opened.endpoint,
            data=body,
            # botocore would find out the first and the last by itself, at length.
            headers={
                "Host": opened.host,
                "Content-Type": "application/x-amz-json-1.0",
                "X-Amz-Target": f"AmazonSQS.{action}",
                "X-Amz-Content-SHA256": sha256(body).hexdigest(),
            },
        )
        try:
            SigV4Auth(keys, "sqs", opened.region).add_auth(request)
        except BotoCoreError as error:
            raise QueueUnavailable(_name(error)) from None
        try:
            status, content = opened.client.post(body, request.headers)
        except NotSentError as error:
            raise QueueUnavailable(error.code) from None
        except CALL_ERRORS as error:
            raise QueueUnavailable(type(error).__name__, unclear=True) from None
        answer = _object(content)
        doubted = status in (401, 403) or "Token" in _code(status, answer)
        if doubted and time.monotonic() - opened.since > self.trust_seconds:
            # A key that was replaced, in a file or by a program that is asked once: the next call looks again.
            self._opened = None
            opened.client.close()
        return status, answer

    def _open(self) -> _Opened:
        with self._opening:
            if self._opened is None:
                try:
                    self._opened = self._look_up()
                except Exception as error:  # noqa: BLE001 - botocore asks files, programs and services of others
                    raise QueueUnavailable(_name(error)) from None
            return self._opened

    def _look_up(self) -> _Opened:
        credentials.bound_programs()
        session = boto3.session.Session(region_name=self._region)
        found = session.get_credentials()
        if found is None:
            raise QueueUnavailable("NoCredentials")
        # Only to learn where it would go: AWS_ENDPOINT_URL and its kin, profiles, FIPS, dual stack.
        client = session.client(
            "sqs", config=Config(connect_timeout=self.connect_seconds, read_timeout=self.call_seconds)
        )
        endpoint = client.meta.endpoint_url.rstrip("/") + "/"
        region = client.meta.region_name
        client.close()
        bundle = session._session.get_config_variable("ca_bundle")
        proxies = get_environ_proxies(endpoint)
        calls: HttpsClient | _ProxiedClient
        if endpoint.partition(":")[0] in proxies:
            calls = _ProxiedClient(endpoint, proxies, bundle, (self.connect_seconds, self.call_seconds))
        else:
            calls = HttpsClient(
                endpoint,
                cafile=bundle or get_cert_path(True),
                connect_seconds=self.connect_seconds,
                call_seconds=self.call_seconds,
            )
        return _Opened(found, region, endpoint, host_field(endpoint), calls, time.monotonic())


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """A time limit for the body: past it, QueueUnavailable."""
    with gevent.Timeout(seconds) as limit:
        try:
            yield
        except gevent.Timeout as late:
            if late is not limit:
                raise
            raise QueueUnavailable("TimeoutError") from None


class _ProxiedClient:
    """The same as HttpsClient through an HTTP proxy, by botocore's own session, which knows proxies of every kind."""

    def __init__(
        self, endpoint: str, proxies: Mapping[str, str], bundle: str | None, seconds: tuple[float, float]
    ) -> None:
        self._endpoint = endpoint
        self._call_seconds = seconds[1]
        self._session = URLLib3Session(verify=bundle or True, proxies=dict(proxies), timeout=seconds)

    def post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """As HttpsClient's."""
        with gevent.Timeout(self._call_seconds) as limit:
            try:
                response = self._session.send(AWSPreparedRequest("POST", self._endpoint, headers, body, False))
                return response.status_code, response.content
            except (ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError) as error:
                raise NotSentError(type(error).__name__) from None
            except (HTTPClientError, BotoSSLError) as error:
                raise ConnectionAbortedError(type(error).__name__) from None
            except gevent.Timeout as late:
                if late is not limit:
                    raise
                raise TimeoutError("no whole answer in time") from None

    def close(self) -> None:
        self._session.close()


def _name(error: BaseException) -> str:
    """A word for what went wrong: a service's own code where it gave one, else the name of the error."""
    if isinstance(error, QueueUnavailable):
        return error.code
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    return type(error).__name__


def _code(status: int, answer: Mapping[str, Any]) -> str:
    return str(answer.get("__type", f"HTTP{status}")).rpartition("#")[2]


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
