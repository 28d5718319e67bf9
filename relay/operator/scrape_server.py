"""The HTTP server for scrapers: few connections, each for a few seconds, whatever clients do.

Imported only where `SMTP_RELAY_METRICS_PORT` asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final
from wsgiref.types import WSGIApplication

import gevent
import gevent.socket
from gevent.pywsgi import WSGIHandler, WSGIServer

if TYPE_CHECKING:
    from greenlet import greenlet

#: Connections at a time. One more, and the oldest is closed: a scraper that comes now is served now.
MOST_CONNECTIONS: Final = 16
#: For a whole connection, with all its requests; seconds. A scraper that keeps connections open makes a new one.
CONNECTION_SECONDS: Final = 10.0


class _Handler(WSGIHandler):
    #: Of one request; octets.
    MAX_REQUEST_LINE = 4096

    def handle(self) -> None:
        """The whole connection."""
        with gevent.Timeout(CONNECTION_SECONDS, False):  # type: ignore[arg-type]  # gevent: no exception
            super().handle()


class ScrapeServer(WSGIServer):
    """Serves one WSGI application."""

    def __init__(self, address: tuple[str, int], application: WSGIApplication) -> None:
        super().__init__(address, application, log=None, error_log=None, handler_class=_Handler)
        self._open: OrderedDict[greenlet, None] = OrderedDict()

    def handle(self, sock: gevent.socket.socket, address: str) -> None:
        """One connection, in a separate greenlet."""
        while len(self._open) >= MOST_CONNECTIONS:
            oldest, _ = self._open.popitem(last=False)
            gevent.kill(oldest)
        current = gevent.getcurrent()
        self._open[current] = None
        try:
            super().handle(sock, address)
        finally:
            self._open.pop(current, None)
