"""A TCP proxy that misbehaves when told to: it stands between the relay and whatever the relay talks to.

It runs in a separate thread and is controlled from any other. Connections that are open when it is told something
follow it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

#: SO_LINGER on, for no time: close() sends RST.
_AT_ONCE: Final = struct.pack("ii", 1, 0)
_CHUNK: Final = 65536


@dataclass(slots=True)
class Trip:
    """Resets a connection when these octets come by from the client, before or after the server gets them."""

    pattern: bytes
    deliver: bool
    times: int = 1


class Proxy:
    """Passes octets between its own port on 127.0.0.1 and a server, with the faults that are switched on."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """`host` and `port`: of the server."""
        self._target = (host, port)
        self.host = "127.0.0.1"
        self.port = 0
        #: When each connection came, of time.monotonic().
        self.arrivals: list[float] = []
        #: Seconds that each piece is kept back, on its way to the server and to the client.
        self.delay_to_server = 0.0
        self.delay_to_client = 0.0
        #: Octets that are read and thrown away, as a network does that lost its route in one direction.
        self.drop_to_server = False
        self.drop_to_client = False
        #: Nothing is read from either side.
        self._stalled = False
        self.trip: Trip | None = None
        #: A connection is reset once its client has sent so many octets.
        self.reset_after: int | None = None
        #: What every client hears, whatever it says, instead of the server.
        self.canned: bytes | None = None
        #: Seconds between two octets for the client, and what it hears again and again instead of an answer.
        self.dribble = 0.0
        self.babble: tuple[bytes, float] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._plug: list[socket.socket] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        self._call(self._let_flow(True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._shut())
        self._call(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def refuse(self) -> None:
        """Nothing listens any more, and each connection gets an RST."""
        self._call(self._shut())

    def stall(self) -> None:
        """Connections are taken, and then nothing moves, in either direction: a server that hangs."""
        self._stalled = True
        self._call(self._let_flow(False))

    def vanish(self) -> None:
        """A host that is gone without a word: SYNs are not answered, open connections are silent."""
        self.stall()
        self._call(self._shut(reset=False))
        plug = socket.socket()
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        plug.bind((self.host, self.port))
        plug.listen(0)
        self._plug = [plug]
        for _ in range(4):  # fills the queue of the listener, from which nothing is accepted
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect((self.host, self.port))
            self._plug.append(filler)

    def reset_all(self) -> None:
        """Every open connection gets an RST, on both sides."""
        self._call(self._reset_all())

    def heal(self) -> None:
        """Everything is as it should be again, for connections that are open too."""
        self.delay_to_server = self.delay_to_client = 0.0
        self.drop_to_server = self.drop_to_client = False
        self.trip = None
        self.reset_after = None
        self.canned = None
        self.dribble = 0.0
        self.babble = None
        for plug in self._plug:
            plug.close()
        self._plug = []
        self._stalled = False
        self._call(self._listen())
        self._call(self._let_flow(True))

    def arrivals_since(self, moment: float) -> int:
        """How many connections came after a moment of time.monotonic()."""
        return sum(arrival > moment for arrival in self.arrivals)

    # In the loop's thread

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        if self._server is not None:
            return
        self._server = await asyncio.start_server(self._serve, self.host, self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self, *, reset: bool = True) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        if reset:
            await self._reset_all()

    async def _let_flow(self, flows: bool) -> None:
        (self._flowing.set if flows else self._flowing.clear)()

    async def _end_tasks(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _reset_all(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.arrivals.append(time.monotonic())
        self._open.add(to_client)
        to_server: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            if self.canned is not None:
                await self._answer(from_client, to_client)
                return
            from_server, to_server = await asyncio.open_connection(*self._target)
            self._open.add(to_server)
            await asyncio.gather(
                self._pump(from_client, to_server, to_client, upstream=True),
                self._pump(from_server, to_client, to_server, upstream=False),
            )
        except (OSError, asyncio.CancelledError):
            # The server is not there, or one side cut the connection: so does the other. Or the proxy itself ends.
            _reset(to_client)
        finally:
            for writer in (to_client, to_server):
                if writer is not None:
                    self._open.discard(writer)
                    writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(_CHUNK) and self.canned is not None:
            writer.write(self.canned)
            await writer.drain()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: asyncio.StreamWriter, *, upstream: bool
    ) -> None:
        passed = 0
        try:
            while octets := await reader.read(_CHUNK):
                await self._flowing.wait()
                delay = self.delay_to_server if upstream else self.delay_to_client
                if delay:
                    await asyncio.sleep(delay)
                await self._flowing.wait()
                if self.drop_to_server if upstream else self.drop_to_client:
                    continue
                if upstream and self.trip is not None and self.trip.times and self.trip.pattern in octets:
                    await self._trip(self.trip, octets, writer, back)
                    return
                if upstream and self.canned is not None:
                    back.write(self.canned)
                    continue
                if upstream and self.reset_after is not None and passed + len(octets) > self.reset_after:
                    writer.write(octets[: self.reset_after - passed])
                    await writer.drain()
                    _reset(back)
                    _reset(writer)
                    return
                if upstream and self.babble is not None:
                    await self._babble(back)
                    continue
                if not upstream and self.dribble:
                    octets = await self._dribble(octets, writer)
                passed += len(octets)
                writer.write(octets)
                await writer.drain()
            await self._flowing.wait()
            writer.write_eof()
        except OSError:
            _reset(writer)
            _reset(back)

    async def _babble(self, client: asyncio.StreamWriter) -> None:
        while self.babble is not None:
            client.write(self.babble[0])
            await client.drain()
            await asyncio.sleep(self.babble[1])

    async def _dribble(self, octets: bytes, client: asyncio.StreamWriter) -> bytes:
        """What is left when the fault is over."""
        while self.dribble and octets:
            client.write(octets[:1])
            await client.drain()
            octets = octets[1:]
            await asyncio.sleep(self.dribble)
        return octets

    async def _trip(
        self, trip: Trip, octets: bytes, server: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        trip.times -= 1
        if trip.deliver:
            self.drop_to_client = True
            server.write(octets)
            await server.drain()
            await asyncio.sleep(0.2)  # the server carries it out, and the client gets no answer
            self.drop_to_client = False
        _reset(client)
        _reset(server)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
