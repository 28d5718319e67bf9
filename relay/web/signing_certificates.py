"""The keys that SNS signs with: each certificate is fetched once, from Amazon's hosts alone."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.x509 import load_pem_x509_certificate
from gevent.lock import BoundedSemaphore

from relay.aws.sns_host import NotFetched, is_certificate_url

log = structlog.get_logger(__name__)

#: Keys that are remembered. Amazon has one a region, and a new one every year.
_MOST_KEYS: Final = 32
#: Names of certificates are asked for without a signature: so many that lead to nothing are fetched in so many seconds.
_MOST_FAILURES: Final = 20
_FAILURE_SECONDS: Final = 60.0


class NoKey(Exception):
    """The certificate can't be had now. `final`: nor ever, for it is at no host of SNS."""

    def __init__(self, *, final: bool) -> None:
        super().__init__(final)
        self.final = final


class SigningCertificates:
    """Public keys by the URLs of their certificates."""

    def __init__(self, fetch: Callable[[str], bytes]) -> None:
        """`fetch`: `relay.aws.sns_host.SnsHost.get`."""
        self._fetch = fetch
        self._keys: OrderedDict[str, RSAPublicKey] = OrderedDict()
        self._failures: deque[float] = deque(maxlen=_MOST_FAILURES)
        #: One at a time: a greenlet that waits finds what the one before has fetched.
        self._turn = BoundedSemaphore(1)

    def key(self, url: str) -> RSAPublicKey:
        """The key of a certificate. Raises NoKey; what is at another host is not asked for."""
        found = self._keys.get(url)
        if found is not None:
            return found
        if not is_certificate_url(url):
            raise NoKey(final=True)
        with self._turn:
            found = self._keys.get(url)
            return found if found is not None else self._fetched(url)

    def _fetched(self, url: str) -> RSAPublicKey:
        now = time.monotonic()
        if len(self._failures) == _MOST_FAILURES and now - self._failures[0] < _FAILURE_SECONDS:
            raise NoKey(final=False)
        try:
            key = load_pem_x509_certificate(self._fetch(url)).public_key()
        except (NotFetched, ValueError) as error:
            self._failures.append(now)
            status = error.status if isinstance(error, NotFetched) else 200
            log.warning("signing_certificate_not_fetched", status=status)
            raise NoKey(final=False) from error
        if not isinstance(key, RSAPublicKey):
            self._failures.append(now)
            raise NoKey(final=False)
        self._keys[url] = key
        while len(self._keys) > _MOST_KEYS:
            self._keys.popitem(last=False)
        return key
