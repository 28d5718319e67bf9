"""HTTP requests to URLs that customers wrote: never into our own network, and never for longer or more than wanted.

A name is resolved once, every address is looked at, and the connection goes to an address that was looked at, with the
name in Host and in the TLS handshake (contract sections 3 and 9). A redirect is a response like any other.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit

import gevent
import gevent.monkey
from gevent.lock import BoundedSemaphore
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from relay.core.address import normalise_domain
from relay.core.deadlines import with_what_is_at_hand
from relay.core.supervision import NativeThread
from relay.core.tls_client import client_context
from relay.delivery.bounded_tls import BoundedTls

_PORTS: Final = {"http": 80, "https": 443}
_PRIVATE_SUFFIXES: Final = (".internal", ".local", ".localhost", ".cluster.local")
#: Networks that are globally routable by their form, or by what an older Python knows, and may not be: 6to4 and its
#: relays, protocols (Teredo and a cloud's metadata among them), documentation, and the host agent of a cloud.
_REFUSED_NETWORKS: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            *("2002::/16", "192.88.99.0/24", "192.0.0.0/24", "2001::/23", "3fff::/20", "2001:db8::/32"),
            *("198.18.0.0/15", "168.63.129.16/32"),
        ),
    )
)
#: The third quarter of an IPv6 address whose last one is an IPv4 address (RFC 5214 section 6.1), in any network; the
#: mask leaves out the bits for universal and group.
_ISATAP: Final = 0x5EFE
_ISATAP_MASK: Final = 0xFCFF_FFFF
#: Characters of a URL.
LONGEST_URL: Final = 8_000
#: What stands between the slashes: a name, or an IPv6 address in brackets, and maybe a port. Nothing else is a part of
#: it: older versions of Python read `[::1]` out of `x.example[::1]y`.
_AUTHORITY: Final = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\[\]:]+)(?::[0-9]*)?")
#: Among them the backslash, which some programs take for a slash.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_IN_TARGET: Final = "/?%:@!$&'()*+,;=~-._[]"
#: A host whose last label is a number is an IPv4 address in one of its notations, and no name (WHATWG URL, 3.5).
_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)")

#: Octets read at a time, and the most that a response may have beside its content: header fields and interim responses,
#: and what frames the content, so many times its octets.
_READ: Final = 16_384
_MOST_HEAD: Final = 65_536
_MOST_FRAMING: Final = 8
#: Threads that look names up, and as many for names whose last look-up took more than so many seconds: a name whose
#: servers do not answer keeps a thread for longer than the request waits for it. So many such names are remembered.
_LOOK_UPS: Final = 64
#: Addresses of a name that are connected to, one after the other: a name may have thousands.
_MOST_TRIED: Final = 8
_SLOW_SECONDS: Final = 2.0
_REMEMBERED: Final = 10_000

Resolve = Callable[[str, int], Sequence[str]]
#: Status and octets of the content; whether more of it is wanted.
Receive = Callable[[int, bytes], bool]


class RefusedUrlError(Exception):
    """A URL that is never asked for anything, whatever it would answer."""


class UnavailableError(Exception):
    """There was no whole answer. It may come later. The text names the cause."""


class Outbound:
    """Makes such requests. Each one has a separate connection."""

    def __init__(
        self,
        *,
        is_routable: Callable[[str], bool] | None = None,
        resolve: Resolve | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """`is_routable`: which addresses may be connected to. `resolve`: the addresses of a name; raises OSError.
        `context`: the trusted authorities. By default `routable`, the system's resolver, and the system's authorities.
        """
        self._is_routable = is_routable or routable
        self._resolve = resolve or _LookUps().addresses
        self._context = context

    def request(
        self, method: str, url: str, fields: Mapping[str, str], body: bytes | None, *, receive: Receive, seconds: float
    ) -> int:
        """The status of the response; its content goes to `receive` until that wants no more of it.

        `fields` are all but Host, Connection and Content-Length. Whatever it does ends after `seconds`. Raises
        RefusedUrlError, UnavailableError, and what `receive` raises.
        """
        parts = checked(url)
        deadline = time.monotonic() + seconds
        with gevent.Timeout(seconds) as limit:
            try:
                request = _head(method, parts, fields, body) + (body or b"")
                return self._request(parts, request, receive=receive, deadline=deadline, limit=limit)
            except TimeoutError:
                raise UnavailableError(_late(seconds)) from None
            except (OSError, HttpParserError, HttpParserUpgrade, UnicodeError) as error:
                raise UnavailableError(_cause(error)) from None
            except gevent.Timeout as late:
                if late is not limit:
                    raise
                raise UnavailableError(_late(seconds)) from None

    def _request(
        self, parts: SplitResult, request: bytes, *, receive: Receive, deadline: float, limit: gevent.Timeout
    ) -> int:
        sock = self._connect(parts, deadline)
        try:
            sock.sendall(request)
            response = _BoundedResponse(receive)
            return with_what_is_at_hand(partial(response.read, sock), deadline, limit)
        finally:
            sock.close()

    def _connect(self, parts: SplitResult, deadline: float) -> socket.socket | BoundedTls:
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        addresses = list(dict.fromkeys(self._resolve(host, port)))
        if not addresses or not all(map(self._is_routable, addresses)):
            raise RefusedUrlError("an address that is not globally routable")
        tried = addresses[:_MOST_TRIED]
        for place, address in enumerate(tried):
            left = _seconds_left(deadline)
            # The last one may take all that is left, the others leave some of it to those after them.
            last = place == len(tried) - 1
            try:
                sock = socket.create_connection((address, port), timeout=left if last else left / 2)
                break
            except OSError:
                if last:
                    raise
        try:
            sock.settimeout(_seconds_left(deadline))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if parts.scheme == "https":
                if self._context is None:
                    self._context = client_context()
                return BoundedTls(sock, self._context, host, deadline)
        except BaseException:
            sock.close()
            raise
        return sock


class _BoundedResponse:
    """One response, as llhttp reads it (RFC 9112)."""

    def __init__(self, receive: Receive) -> None:
        self._parser = HttpResponseParser(self)
        self._receive = receive
        self._ended = self._headers_complete = self._measured = False
        self._octets = self._content = 0
        self._pieces: list[bytes] = []

    def read(self, sock: socket.socket | BoundedTls, deadline: float) -> int:
        """The status, when the content has ended or no more of it is wanted."""
        while True:
            # Anew for each piece: a server that sends an octet now and then, or without a pause, is not in time by it.
            sock.settimeout(_seconds_left(deadline))
            octets = sock.recv(_READ)
            self._octets += len(octets)
            if octets:
                self._feed(octets)
            if self._octets > _MOST_HEAD + (1 + _MOST_FRAMING) * self._content:
                raise ConnectionAbortedError("header fields without end")
            status = self._parser.get_status_code()
            pieces, self._pieces = self._pieces, []
            if self._headers_complete and not all(self._receive(status, piece) for piece in pieces):
                return status
            if self._ended:
                return status
            if not octets:
                if self._headers_complete and not self._measured:  # to the end of the connection (RFC 9112, 6.3)
                    return status
                raise ConnectionResetError("closed before its answer was complete")

    def _feed(self, octets: bytes) -> None:
        try:
            self._parser.feed_data(octets)
        except HttpParserError:
            # What follows a whole response, as content does that a 204 may not have, is nothing to us.
            if not self._ended:
                raise

    def on_header(self, name: bytes, _value: bytes) -> None:
        """Called by the parser."""
        self._measured = self._measured or name.lower() in {b"content-length", b"transfer-encoding"}

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        # An interim response (RFC 9110 section 15.2) is none: the head goes on.
        if self._parser.get_status_code() >= 200:
            self._headers_complete = True
        else:
            self._measured = False

    def on_body(self, octets: bytes) -> None:
        """Called by the parser."""
        self._content += len(octets)
        self._pieces.append(octets)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._ended = self._headers_complete


#: An entry of what getaddrinfo returns (RFC 3493 section 6.1): the fifth is the address, and its first the host.
_AddressInfo = tuple[int, int, int, str, tuple[str | int, ...]]


class _Threads:
    """Threads for look-ups, and how many of them are free."""

    def __init__(self) -> None:
        self.native = NativeThread(_LOOK_UPS)
        self.free = BoundedSemaphore(_LOOK_UPS)


class _LookUps:
    """The system's resolver, in threads apart from those that look up our own servers."""

    def __init__(self) -> None:
        self._threads = _Threads()
        #: For names in `_slow` alone, so that these wait for each other, and no other name for them.
        self._slow_threads = _Threads()
        self._slow: OrderedDict[str, None] = OrderedDict()
        #: What is being looked up now: one name takes one thread, however many wait for it, and for whatever port.
        self._running: dict[str, Callable[[], list[_AddressInfo]]] = {}

    def addresses(self, host: str, _port: int) -> list[str]:
        """The addresses of a name. Raises OSError."""
        running = self._running.get(host)
        if running is None:
            threads = self._slow_threads if host in self._slow else self._threads
            threads.free.acquire()
            running = self._running.get(host)
            if running is None:
                try:
                    running = self._begin(host, threads)
                except BaseException:
                    threads.free.release()
                    raise
            else:  # by another one that waited as well
                threads.free.release()
        return [str(info[4][0]) for info in running()]

    def _begin(self, host: str, threads: _Threads) -> Callable[[], list[_AddressInfo]]:
        getaddrinfo = gevent.monkey.get_original("socket", "getaddrinfo")
        began = time.monotonic()

        def ended(_: object) -> None:
            threads.free.release()
            del self._running[host]
            self._slow.pop(host, None)
            if time.monotonic() - began > _SLOW_SECONDS:
                self._slow[host] = None
                if len(self._slow) > _REMEMBERED:
                    self._slow.popitem(last=False)

        running = threads.native.begin(lambda: getaddrinfo(host, None, 0, socket.SOCK_STREAM), ended)
        self._running[host] = running
        return running


def checked(url: str) -> SplitResult:
    """The parts of a URL that may be requested, as far as its text shows. Raises RefusedUrlError."""
    if len(url) > LONGEST_URL or _CONTROLS.search(url.strip()):
        raise RefusedUrlError("not a URL")
    try:
        parts = urlsplit(url.strip())
        if "@" in parts.netloc:
            raise RefusedUrlError("user information")
        port = parts.port
        host = parts.hostname or ""
        if host and not host.isascii():
            host = normalise_domain(host)
    except ValueError:
        raise RefusedUrlError("not a URL") from None
    host = host.removesuffix(".").lower()
    if parts.scheme not in _PORTS or not host:
        raise RefusedUrlError("neither http nor https")
    if port is not None and port < 1024 and port not in _PORTS.values():
        raise RefusedUrlError("a reserved port")
    if f".{host}".endswith(_PRIVATE_SUFFIXES):
        raise RefusedUrlError("a private name")
    if _NUMBER.fullmatch(host) and not _is_dotted_quad(host):
        raise RefusedUrlError("an address in an unusual notation")
    if not _AUTHORITY.fullmatch(parts.netloc) or re.search(r"[\s\"<>^`{|}%]|^\.|\.\.|\.$", host):
        raise RefusedUrlError("not a URL")
    # What was looked at is what is resolved, asked for in the request, and named in the certificate.
    literal = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=literal if port is None else f"{literal}:{port}")


def routable(address: str) -> bool:
    """Whether an address may be connected to: globally routable, by whatever way it is written."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return routable(str(found.ipv4_mapped))
    if any(found in network for network in _REFUSED_NETWORKS):
        return False
    if isinstance(found, ipaddress.IPv6Address) and int(found) >> 32 & _ISATAP_MASK == _ISATAP:
        return False
    # Reserved is, of IPv6, what lies outside of 2000::/3: NAT64 and the other ways into IPv4 do.
    return found.is_global and not found.is_multicast and not found.is_reserved


def _is_dotted_quad(host: str) -> bool:
    try:
        return str(ipaddress.IPv4Address(host)) == host
    except ValueError:
        return False


def _head(method: str, parts: SplitResult, fields: Mapping[str, str], body: bytes | None) -> bytes:
    # As browsers do: what may not stand in a request is encoded, what is encoded stays.
    target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_IN_TARGET)
    if not target.startswith("/"):
        target = "/" + target
    length = {} if body is None else {"Content-Length": str(len(body))}
    given = {"Host": parts.netloc, **fields, **length, "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


def _seconds_left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("no whole answer in time")
    return seconds


def _late(seconds: float) -> str:
    return f"TimeoutError: no whole answer within {seconds:g} s"


def _cause(error: Exception) -> str:
    """The name of an error and what it says, which is nothing of our network: the address was its own."""
    said = str(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
