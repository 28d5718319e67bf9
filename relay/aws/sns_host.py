"""GET requests to the hosts of Amazon SNS, and to no other: signing certificates, confirmations of subscriptions."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from typing import Final

import gevent

from relay.core.tls_client import client_context

#: The hosts of SNS (contract section 8): of the public regions, and of those in China.
_HOST: Final = r"sns\.[a-z0-9]+(?:-[a-z0-9]+)+\.amazonaws\.com(?:\.cn)?"
_URL: Final = re.compile(rf"https://({_HOST})(/[!-~]*)", re.ASCII)
_CERTIFICATE_URL: Final = re.compile(rf"https://{_HOST}/SimpleNotificationService-[0-9a-fA-F]{{1,64}}\.pem", re.ASCII)
#: Octets of a response that are read. A certificate has two thousand.
_MAX_OCTETS: Final = 65_536
#: Of a URL. A confirmation's has five hundred.
_MAX_URL: Final = 4096


class NotFetched(Exception):
    """There was no answer, or none of use. `status`: what the answer was, 0 where there was none."""

    def __init__(self, status: int = 0) -> None:
        super().__init__(status)
        self.status = status


def is_sns_url(url: str) -> bool:
    """Whether a URL is one of a host of SNS: HTTPS at its own port, without user information."""
    return len(url) <= _MAX_URL and _URL.fullmatch(url) is not None


def is_certificate_url(url: str) -> bool:
    """Whether a URL is that of a signing certificate of SNS."""
    return _CERTIFICATE_URL.fullmatch(url) is not None


class SnsHost:
    """Makes requests, one connection each: there are few. No redirect is followed, no proxy is used."""

    #: Seconds for all of a request.
    seconds = 5.0

    def __init__(self, cafile: str | None = None, address: tuple[str, int] | None = None) -> None:
        """`cafile`: the trusted authorities, PEM; None: the authorities that the system trusts. `address`: where to
        connect to in the place of the host that a URL names; None: where the name leads to."""
        self._context = client_context(cafile)
        self._address = address

    def get(self, url: str) -> bytes:
        """The content of a response 200. Raises NotFetched, and ValueError for a URL of another host."""
        found = _URL.fullmatch(url)
        if found is None or len(url) > _MAX_URL:
            raise ValueError("not a host of SNS")
        host, target = found[1], found[2]
        try:
            with gevent.Timeout(self.seconds, TimeoutError()):
                return self._exchange(host, target)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotFetched from error

    def _exchange(self, host: str, target: str) -> bytes:
        sock = socket.create_connection(self._address or (host, 443), timeout=self.seconds)
        with contextlib.closing(sock), self._context.wrap_socket(sock, server_hostname=host) as wrapped:
            request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            wrapped.sendall(request.encode("ascii"))
            response = http.client.HTTPResponse(wrapped, method="GET")
            try:
                response.begin()
                content = response.read(_MAX_OCTETS + 1)
            finally:
                response.close()
        if response.status != 200 or len(content) > _MAX_OCTETS:
            raise NotFetched(response.status)
        return content
