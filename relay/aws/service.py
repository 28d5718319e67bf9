"""One AWS service in one region: credentials and endpoint, and signed calls to it, one try each.

boto3 finds credentials and endpoint. `relay.aws.signing` signs, and `relay.aws.https` makes the calls, for a fraction
of the CPU that botocore's session or a boto3 client takes; boto3's clients would also try three times by themselves.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

import boto3
import gevent
import orjson
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
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
from relay.aws.https import CALL_ERRORS, Answer, HttpsClient, NotSentError, RequestBody, host_field
from relay.aws.signing import Keys, Signer
from relay.core.frozen import frozen

#: What a name of an error is made of; it stands in rows, logs and metrics.
_ERROR_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")
#: What boto3 calls the services that are called.
Name: TypeAlias = Literal["sesv2", "sqs"]
#: What services sign their calls as, where that is another name than boto3's.
_SIGNED_AS: Final[Mapping[str, str]] = {"sesv2": "ses"}


class CallError(Exception):
    """A call got no answer. `code`: a word for why. `unclear`: the service may have done what it was asked for."""

    def __init__(self, code: str, *, unclear: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.unclear = unclear


@frozen
class Response:
    """What a service answered. `code`: its name of the error, or `HTTP` and the status; of no meaning for a success."""

    status: int
    document: dict[str, object]
    code: str


@frozen
class _Opened:
    """What calls need: credentials, and where they go."""

    credentials: Credentials
    #: Those of them that do not change, of variables and files; None: they are asked for each time.
    keys: Keys | None
    signer: Signer
    host: str
    client: HttpsClient | _ProxiedClient
    #: The moment of time.monotonic().
    since: float


class AwsService:
    """Calls one service. Nothing is looked up before the first call. Each call tries again to find what the one before
    could not, and what AWS no longer accepts is looked up again."""

    #: Seconds from one look-up to the next where AWS refuses what it found.
    trust_seconds = 60.0

    def __init__(
        self, name: Name, region: str, *, path: str, open_seconds: float, connect_seconds: float, call_seconds: float
    ) -> None:
        """`name`: boto3's; `path`: of all its calls. `open_seconds`: for credentials and endpoint, of which a program
        or a service may have to be asked; `connect_seconds`: for a connection to one address; `call_seconds`: for a
        whole call beside all that."""
        self.open_seconds, self.connect_seconds, self.call_seconds = open_seconds, connect_seconds, call_seconds
        self._name = name
        self._region = region
        self._path = path
        self._opening = RLock()
        self._opened: _Opened | None = None

    def open(self, seconds: float) -> None:
        """Looks up credentials and endpoint ahead of the first call, which takes 0.1 s of CPU.

        Raises CallError, after so many seconds at the latest; then a call does it.
        """
        with _limited(seconds):
            self._open()

    def call(
        self,
        body: bytes | RequestBody,
        fields: Mapping[str, str],
        *,
        more_seconds: float = 0.0,
        ready: Callable[[], None] | None = None,
    ) -> Response:
        """POSTs `body` with these header fields, signed. `more_seconds`: for a body that takes longer to send.

        `ready`: see HttpsClient. Raises CallError, and TooLate where `ready` does.
        """
        opened, keys = self._ready()
        headers = opened.signer.signed(keys, "POST", {"Host": opened.host, **fields}, _digest(body))
        try:
            answer = opened.client.post(body, headers, more_seconds=more_seconds, ready=ready)
        except NotSentError as error:
            raise CallError(error.code) from None
        except CALL_ERRORS as error:
            raise CallError(type(error).__name__, unclear=True) from None
        document = _object(answer.content)
        response = Response(answer.status, document, _code(answer, document))
        doubted = response.status in (401, 403) or "Token" in response.code
        if doubted and time.monotonic() - opened.since > self.trust_seconds:
            # A key that was replaced, in a file or by a program that is asked once: the next call looks again.
            self._opened = None
            opened.client.close()
        return response

    def close(self) -> None:
        """Closes the connections that are idle."""
        if self._opened is not None:
            self._opened.client.close()

    def _ready(self) -> tuple[_Opened, Keys]:
        """What a call needs. Raises CallError."""
        opened = self._opened
        if opened is not None and opened.keys is not None:
            return opened, opened.keys
        with _limited(self.open_seconds):
            opened = self._open()
            try:
                return opened, _keys(opened.credentials)
            except Exception as error:  # noqa: BLE001 - as in _open
                expected = isinstance(error, (BotoCoreError, ClientError, OSError))
                if not expected or time.monotonic() - opened.since > self.trust_seconds:
                    # What these credentials were made of may not be there any more.
                    self._opened = None
                raise CallError(_word(error)) from None

    def _open(self) -> _Opened:
        with self._opening:
            if self._opened is None:
                try:
                    self._opened = self._look_up()
                except Exception as error:  # noqa: BLE001 - botocore asks files, programs and services of others
                    raise CallError(_word(error)) from None
            return self._opened

    def _look_up(self) -> _Opened:
        credentials.bound_programs()
        session = boto3.session.Session(region_name=self._region)
        found = session.get_credentials()
        if found is None:
            raise CallError("NoCredentials")
        # Only to learn where it would go: AWS_ENDPOINT_URL and its kin, profiles, FIPS, dual stack.
        client = session.client(
            self._name,
            config=Config(connect_timeout=self.connect_seconds, read_timeout=self.call_seconds),
        )
        url = client.meta.endpoint_url.rstrip("/") + self._path
        region = client.meta.region_name
        client.close()
        bundle = session._session.get_config_variable("ca_bundle")
        proxies = get_environ_proxies(url)
        calls: HttpsClient | _ProxiedClient
        if url.partition(":")[0] in proxies:
            calls = _ProxiedClient(url, proxies, bundle, (self.connect_seconds, self.call_seconds))
        else:
            calls = HttpsClient(
                url,
                cafile=bundle or get_cert_path(True),
                connect_seconds=self.connect_seconds,
                call_seconds=self.call_seconds,
            )
        signer = Signer(_SIGNED_AS.get(self._name, self._name), region, urlsplit(url).path)
        keys = _keys(found) if type(found) is Credentials else None
        return _Opened(found, keys=keys, signer=signer, host=host_field(url), client=calls, since=time.monotonic())


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """A time limit for the body: past it, CallError."""
    with gevent.Timeout(seconds) as limit:
        try:
            yield
        except gevent.Timeout as late:
            if late is not limit:
                raise
            raise CallError("TimeoutError") from None


class _ProxiedClient:
    """The same as HttpsClient through an HTTP proxy, by botocore's own session, which knows proxies of every kind."""

    def __init__(self, url: str, proxies: Mapping[str, str], bundle: str | None, seconds: tuple[float, float]) -> None:
        self._url = url
        self._call_seconds = seconds[1]
        self._session = URLLib3Session(
            verify=bundle or True,  # type: ignore[arg-type]  # the stubs leave out a path
            proxies=dict(proxies),
            timeout=seconds,  # type: ignore[arg-type]  # and what is given for connecting and reading each
        )

    def post(
        self,
        body: bytes | RequestBody,
        headers: Mapping[str, str],
        *,
        more_seconds: float = 0.0,
        ready: Callable[[], None] | None = None,
    ) -> Answer:
        """As HttpsClient's, except that `ready` is called before there is a connection."""
        sent: bytes | Iterator[bytes] = body if isinstance(body, bytes) else body.pieces()
        if not isinstance(body, bytes):
            headers = {**headers, "Content-Length": str(body.size)}
        if ready is not None:
            ready()
        with gevent.Timeout(self._call_seconds + more_seconds) as limit:
            try:
                response = self._session.send(AWSRequest("POST", self._url, headers, sent).prepare())
                return Answer(response.status_code, response.content, response.headers.get("x-amzn-errortype", ""))
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


def _keys(found: Credentials) -> Keys:
    """The keys of this moment. Raises CallError, and whatever botocore raises."""
    keys = found.get_frozen_credentials()
    return Keys(_credential(keys.access_key), _credential(keys.secret_key), _credential(keys.token or ""))


def _credential(value: object) -> str:
    """One of them, as it may stand in a header field: botocore hands on whatever a program printed or a file holds."""
    if isinstance(value, str) and value.isascii() and value.isprintable():
        return value
    raise CallError("CredentialRetrievalError")


def _digest(body: bytes | RequestBody) -> str:
    """What a signature says of the body. The hub goes on between the pieces of a large one."""
    if isinstance(body, bytes):
        return sha256(body).hexdigest()
    digest = sha256()
    for piece in body.pieces():
        digest.update(piece)
        gevent.sleep(0)
    return digest.hexdigest()


def _word(error: BaseException) -> str:
    """A word for what went wrong: a service's own code where it gave one, else the name of the error."""
    if isinstance(error, CallError):
        return error.code
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    return type(error).__name__


def _code(answer: Answer, document: Mapping[str, object]) -> str:
    """AWS's name of an error: in a field of REST services, in the document of JSON ones; without what stands around."""
    name = (answer.error_type or str(document.get("__type", ""))).rpartition("#")[2].partition(":")[0]
    return name if _ERROR_NAME.fullmatch(name) else f"HTTP{answer.status}"


def _object(content: bytes) -> dict[str, object]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
