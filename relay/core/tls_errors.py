"""A connection under TLS that breaks breaks no other one.

OpenSSL keeps errors in one queue for each thread, and `ssl` asks the queue how an operation ended: what an earlier one
left there counts for a connection that is well (SSL_get_error(3)). `ssl` empties the queue with each SSLError, but, in
releases since 2025 (python/cpython#127361), not where it raises another OSError: a client that resets its connection
while it is written to. Greenlets share a thread, so the next one that would have to wait gets that error, a
BrokenPipeError for instance, and so does each one after it, until a connection is new (python/cpython#148594).
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from gevent.ssl import SSLContext, SSLSocket

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def isolate_tls_errors() -> None:
    """From now on all sockets under TLS of this process do so. For a process that gevent has patched."""
    SSLContext.sslsocket_class = IsolatedSocket


def _isolated(
    method: Callable[Concatenate[SSLSocket, _Arguments], _Result],
) -> Callable[Concatenate[SSLSocket, _Arguments], _Result]:
    """The same method, which leaves OpenSSL's queue empty when it fails."""

    @functools.wraps(method)
    def call(self: SSLSocket, /, *arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        try:
            return method(self, *arguments, **options)
        except ssl.SSLError:
            raise
        except OSError:
            # `ssl` has no function for it, but begins with it when it makes a connection, such as this one in memory.
            self.context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), self.server_side, self.server_hostname)
            raise

    return call


class IsolatedSocket(SSLSocket):
    """A socket of gevent's. These are its methods that use OpenSSL; all others for octets call them."""

    read = _isolated(SSLSocket.read)
    write = _isolated(SSLSocket.write)
    send = _isolated(SSLSocket.send)
    do_handshake = _isolated(SSLSocket.do_handshake)
    unwrap = _isolated(SSLSocket.unwrap)
