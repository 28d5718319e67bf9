"""The one way to start a greenlet: what runs for long is begun again when it ends, what runs once logs its failure.

That an unforeseen error has ended a greenlet shows only when mail or jobs are missing. So every loop of the relay is
`supervise`d: its end is logged and counted, and it begins again after a pause that grows. Its name stands in the log,
in the metrics `smtp_relay_greenlets` and `smtp_relay_greenlet_failures`, and in `RUNNING`. Work that ends by itself
goes through `run_once`.

The watch is kept by gevent's link to the end of the greenlet, not by code inside of it: so it holds for whatever ends
a greenlet, a kill from outside and an error thrown before its first step included.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

import gevent
import structlog
from gevent.threadpool import ThreadPool

from relay.core import metrics
from relay.core.handoff import Handoff

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

#: Every supervised greenlet of this process that has neither been stopped nor done its work.
RUNNING: Final[set[Supervised]] = set()


class Supervised:
    """A function that runs in a separate greenlet until `stop`, however often an error ends it. See `supervise`."""

    #: Seconds from the first failure to the next beginning; each further failure doubles them.
    first_pause = 0.1
    #: Seconds without a failure after which the pause is the first one again.
    well_after = 60.0

    def __init__(self, name: str, work: Callable[[], object], *, ends: bool, longest_pause: float) -> None:
        self.name = name
        self._work = work
        self._ends = ends
        self._longest_pause = longest_pause
        self._failures = 0
        self._stopped = self._done = False
        self._began = 0.0
        self._counter = metrics.GREENLET_FAILURES.labels(name)
        self._gauge = metrics.GREENLETS.labels(name)
        RUNNING.add(self)
        self._greenlet = self._begin(0.0)

    @property
    def greenlet(self) -> gevent.Greenlet[..., None]:
        """The present one: it runs, or waits for its pause to be over."""
        return self._greenlet

    @property
    def over(self) -> bool:
        """Whether it has done its work or was stopped: it will not begin again."""
        return self._stopped or self._done

    def stop(self) -> None:
        """Ends it for good, and returns when it has ended. Within its own work it only says that no other begins."""
        self._stopped = True
        RUNNING.discard(self)
        if gevent.getcurrent() is not self._greenlet:
            self._greenlet.kill()

    def _begin(self, pause: float) -> gevent.Greenlet[..., None]:
        greenlet: gevent.Greenlet[..., None] = gevent.Greenlet(self._run)
        greenlet.link(self._ended)
        if pause:
            greenlet.start_later(pause)
        else:
            greenlet.start()
        return greenlet

    def _run(self) -> None:
        self._began = time.monotonic()
        self._gauge.value += 1
        try:
            self._work()
            self._done = self._ends
            if not self._done and not self._stopped:
                log.error("greenlet_ended", greenlet=self.name, failures=self._failures + 1)
        except (SystemExit, KeyboardInterrupt):
            raise  # the process is to end
        except BaseException as error:  # a gevent.Timeout of other code ends it as well
            if not self._stopped:
                log.error("greenlet_failed", greenlet=self.name, failures=self._failures + 1, exc_info=error)
        finally:
            self._gauge.value -= 1

    def _ended(self, _greenlet: object) -> None:
        if self._done or self._stopped:
            RUNNING.discard(self)
            return
        self._counter.inc()
        if time.monotonic() - self._began >= self.well_after:
            self._failures = 0
        pause = min(self._longest_pause, self.first_pause * 2 ** min(self._failures, 30))
        self._failures += 1
        self._greenlet = self._begin(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load


def supervise(
    name: str, work: Callable[..., object], *arguments: object, ends: bool = False, longest_pause: float = 30.0
) -> Supervised:
    """Runs `work(*arguments)` in a separate greenlet, from the next turn of the loop on, and again whenever it ends.

    `name` is a word of ours, for log and metrics. `ends`: to return is its way to have done its work; otherwise a
    return is a failure like any other. `longest_pause`: seconds between two beginnings, at most; where clients wait for
    it, choose few. `work` begins anew each time, so what it shares with others must be whole whenever it is left.
    """
    bound: Callable[[], object] = work if not arguments else lambda: work(*arguments)
    return Supervised(name, bound, ends=ends, longest_pause=longest_pause)


def run_once(
    name: str, work: Callable[..., object], *arguments: object, after: float = 0.0
) -> gevent.Greenlet[..., None]:
    """Runs `work(*arguments)` once, in a separate greenlet, after `after` seconds.

    For work that ends soon, and whose loss costs no more than itself. What it raises is logged and counted.
    """
    greenlet: gevent.Greenlet[..., None] = gevent.Greenlet(_run_once, name, work, arguments)
    if after:
        greenlet.start_later(after)
    else:
        greenlet.start()
    return greenlet


def _run_once(name: str, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    try:
        work(*arguments)
    except (gevent.GreenletExit, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # as above
        metrics.GREENLET_FAILURES.labels(name).inc()
        log.error("greenlet_failed", greenlet=name, failures=1, exc_info=error)


class Crew:
    """Runs work as `run_once` does, by greenlets that stay for the next work: as many as there has ever been at a time.

    # perf: 3.5 µs instead of 17 µs, of which the kernel has the most: Python maps each greenlet's frames by itself.
    # python -m timeit -s 'import gevent; from relay.core.supervision import Crew; c = Crew("x"); t = lambda: None' \
    # 'c.run(t); gevent.sleep(0)'
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[_Member] = []

    def run(self, work: Callable[..., object], *arguments: object) -> None:
        """Has `work(*arguments)` done, from the next turn of the loop on. What it raises is logged and counted."""
        if self._idle:
            member = self._idle.pop()
        else:
            member = _Member()
            run_once(self._name, self._serve, member)
        member.give((work, arguments))

    def _serve(self, member: _Member) -> None:
        while True:
            try:
                work, arguments = member.wait()
            except BaseException:
                # Whatever ended it: it gets no more work, and what it has got is for another one.
                if member.task is None:
                    self._idle.remove(member)
                else:
                    run_once(self._name, self._serve, member)
                raise
            _run_once(self._name, work, arguments)
            # Nothing of it stays in memory meanwhile.
            del work, arguments
            self._idle.append(member)


_Task = tuple[Callable[..., object], tuple[object, ...]]


class _Member:
    """A greenlet of a crew: the work that it has been given and has not begun."""

    __slots__ = ("_given", "task")

    def __init__(self) -> None:
        self._given: Handoff[None] = Handoff()
        self.task: _Task | None = None

    def give(self, task: _Task) -> None:
        """Lets it go on with this."""
        self.task = task
        self._given.set(None)

    def wait(self) -> _Task:
        """What it is given."""
        while self.task is None:
            self._given.get()
            self._given = Handoff()
        task, self.task = self.task, None
        return task


class NativeThread:
    """A thread of the system for work that takes long and waits for nothing: the hub goes on meanwhile.

    It is made with the first work, so behind the fork, and does one after the other; `threads` of them at a time.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool: ThreadPool | None = None

    def run(self, work: Callable[[], _T]) -> _T:
        """What `work()` returns or raises. It may use nothing but memory and files."""
        return self._ready().apply(work)

    def begin(self, work: Callable[[], _T], ended: Callable[[object], object]) -> Callable[[], _T]:
        """As `run`, for several waiting greenlets: each calls what this returns. `ended` is called when there is an
        outcome."""
        result = self._ready().spawn(work)
        result.rawlink(ended)
        # The stubs have None besides, for a result that was never set.
        return lambda: result.get()  # type: ignore[return-value]  # noqa: PLW0108 - without its parameters

    def _ready(self) -> ThreadPool:
        if self._pool is None:
            self._pool = ThreadPool(self._threads)
        return self._pool
