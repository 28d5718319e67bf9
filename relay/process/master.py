"""The master process: it starts workers, replaces those that end or hang, and ends them in good order.

It imports nothing but the standard library, and little of that, because it runs as long as the service and its memory
counts beside the workers'. Everything heavy happens in children: the first one validates the settings and binds the
sockets, hands both over, and ends; the template (`relay.process.template`) loads the code; the others are the workers,
all accepting from the same sockets. What a new worker needs is here or in the template, never in files or in a worker.

Signals: SIGTERM and SIGINT drain (exit 0; a worker that isn't done by the deadline is killed, which loses nothing that
was answered), a second one ends everything at once (exit 1); SIGHUP makes the workers load the certificate again. Exit
2: it can't start as it is configured. Exit 1: the workers fail at start, a second signal, or no worker is left and the
code in the files is another by now.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time

from relay.process import forking, handover
from relay.process.absence import Absence
from relay.process.assignment import Assignment, CertificateKeeper
from relay.process.heartbeat import BEAT_SECONDS, Heartbeats
from relay.process.master_log import MasterLog
from relay.process.roster import HOPELESS_AFTER, LONGEST_PAUSE, STARTED_AFTER, Roster, Worker, pause_after
from relay.process.signal_pipe import SignalPipe
from relay.process.template import Template
from relay.process.termination import ENDING, Termination

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from relay.process.handover import Handover

    #: What a worker does; its exit status.
    Serve = Callable[[Assignment], int]

#: Exit status: not with these settings.
EXIT_CONFIGURATION: Final = 2


def run(prepare: Callable[[socket.socket], None], load: Callable[[bytes], None], serve: Serve) -> int:
    """Runs until a signal ends it; the exit status of the service.

    `prepare` runs in a child that may exit with a status for the service: see `relay.process.handover`.
    `load(settings)` loads all code that a worker runs, in the process that workers are forked from. `serve` runs in
    each worker.
    """
    signals = SignalPipe()
    ours, theirs = socket.socketpair()

    def body() -> None:
        ours.close()
        forking.forget_signals()
        forking.unblock_signals()
        try:
            prepare(theirs)
        except ModuleNotFoundError as error:
            from config import missing_package  # noqa: PLC0415 - in this child alone

            raise SystemExit(missing_package.refuse(error, "relay")) from None

    child = forking.fork(body)
    theirs.close()
    with ours:
        while ours.fileno() not in select.select([ours.fileno(), signals.fileno()], [], [])[0]:
            if ENDING.intersection(signals.read()):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return 0
        received = handover.receive(ours)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if exit_code != 0 or received is None:
        # Ctrl-C reaches the child by itself, which is no failure.
        return 0 if -exit_code in ENDING else max(exit_code, 1)
    return _Master(received, load, serve, signals).run()


class _Master:
    def __init__(self, received: Handover, load: Callable[[bytes], None], serve: Serve, signals: SignalPipe) -> None:
        self._received = received
        self._service = os.urandom(8).hex()
        self._load = load
        self._serve = serve
        self._signals = signals
        self._termination = Termination(received.drain_seconds)
        self._lifeline, self._lifeline_end = os.pipe()
        self._heartbeats = Heartbeats(received.workers)
        self._roster = Roster(self._heartbeats, received.workers)
        self._next_look = time.monotonic()
        self._certificate = CertificateKeeper(received.certificate)
        self._log = MasterLog(json_lines=received.json_lines)
        self._absence = Absence(received.listeners)
        #: Without it, workers are forked from the master and load the code that is in the files then.
        self._by_template = forking.adopt_orphans()
        self._template: Template | None = None
        self._template_due = 0.0
        self._template_deaths = 0
        self._digest: str | None = None
        #: Whether the code in the files is another than the one that the service began with.
        self._code_changed = False
        #: Processes that ended before the template had reported them: process id -> status.
        self._ended_early: dict[int, int] = {}

    def run(self) -> int:
        while True:
            status = self._turn()
            if status is not None:
                return status
            self._wait()
            for number in self._signals.read():
                if number == signal.SIGHUP:
                    self._roster.signal_all(signal.SIGHUP)
                elif number in ENDING and not self._termination.asked:
                    self._begin_drain(number)
                elif number in ENDING and self._termination.is_another(number):
                    self._log.say("warning", "ended_by_second_signal", workers=len(self._roster.workers))
                    return self._kill_all(1)

    def _turn(self) -> int | None:
        """Whatever is to be done now. An exit status when it is over."""
        self._hear_template()
        self._certificate.take()
        status = self._reap()
        if status is not None:
            return status
        now = time.monotonic()
        if self._termination.asked:
            return self._continue_drain(now)
        if self._code_changed and not self._roster.workers and not (self._template and self._template.asked):
            self._log.say("critical", "no_worker_left")
            return 1
        if now >= self._next_look:
            self._next_look = now + BEAT_SECONDS
            self._look(now)
        self._fork_due(now)
        self._absence.attend(self._roster.serves())
        return None

    def _wait(self) -> None:
        """Until something happens, or something is due."""
        reading: list[int] = [self._signals.fileno(), self._certificate.fileno(), *self._absence.descriptors()]
        writing: list[int] = []
        if self._template is not None:
            reading.append(self._template.fileno())
            if self._template.sending:
                writing.append(self._template.fileno())
        ready, _, _ = select.select(reading, writing, [], self._seconds_to_next_event())
        if self._absence.present(ready) and not self._roster.serves():
            self._absence.turn_away(ready)
        if self._template is not None and self._template.sending:
            self._template.send()

    def _seconds_to_next_event(self) -> float:
        if self._termination.asked:
            moment = self._termination.deadline
        elif self._by_template and self._template is None:
            moment = self._next_look if self._code_changed else min(self._next_look, self._template_due)
        else:
            moment = min([self._next_look, *self._roster.due.values()])
        return max(0.0, moment - time.monotonic())

    # What the outside says.

    def _begin_drain(self, number: int) -> None:
        self._termination.ask(number)
        self._log.say("info", "draining", workers=len(self._roster.workers), signal=signal.Signals(number).name)
        self._absence.end()
        for fd, _ in self._received.listeners:
            # Ours is the last one open once the workers closed theirs; it would take clients that no process serves.
            os.close(fd)
        self._roster.due.clear()
        if self._template is not None:
            self._template.dismiss()
        self._roster.signal_all(signal.SIGTERM)

    def _continue_drain(self, now: float) -> int | None:
        """An exit status when the drain is over."""
        if not self._roster.workers and self._template is None:
            self._log.say("info", "drained")
            return 0
        if now >= self._termination.deadline:
            self._log.say("warning", "drain_timed_out", workers=len(self._roster.workers))
            return self._kill_all(0)
        return None

    # The template.

    def _fork_template(self, now: float) -> None:
        try:
            self._template = Template(lambda: self._load(self._received.settings), self._work, self._leave_master)
        except OSError as error:
            self._template_due = now + LONGEST_PAUSE
            self._log.say("error", "fork_failed", reason=errno.errorcode.get(error.errno or 0, "unknown"))

    def _leave_master(self) -> None:
        """In a child: closes what is the master's alone."""
        forking.forget_signals()
        self._signals.leave()
        os.close(self._lifeline_end)
        self._certificate.leave()

    def _hear_template(self) -> None:
        if self._template is None:
            return
        for kind, *words in self._template.words():
            if kind == "loaded":
                self._template.digest = words[0]
                if self._digest not in (None, words[0]):
                    self._refuse_changed_code(self._template)
                    return
                self._digest = words[0]
            elif kind == "forked":
                self._template.asked.discard(int(words[0]))
                self._begin(int(words[0]), int(words[1]))
            else:
                self._template.asked.discard(int(words[0]))
                self._due_again(int(words[0]), int(words[1]))

    def _refuse_changed_code(self, template: Template) -> None:
        """The template ended, and the files hold other code by now: two versions in one service would be worse than
        workers that can't be replaced."""
        self._code_changed = True
        self._roster.due.clear()
        template.asked.clear()
        template.dismiss()
        self._log.say("critical", "code_changed", workers=len(self._roster.workers))

    def _begin(self, index: int, pid: int) -> None:
        """Takes note of a worker that was forked."""
        self._roster.begin(index, pid)
        if self._termination.asked and pid not in self._ended_early:
            os.kill(pid, signal.SIGTERM)

    def _due_again(self, index: int, error_number: int) -> None:
        self._log.say("error", "fork_failed", index=index, reason=errno.errorcode.get(error_number, "unknown"))
        if not self._termination.asked:
            self._roster.due[index] = time.monotonic() + LONGEST_PAUSE

    def _template_ended(self, status: int) -> int | None:
        """An exit status when there is no point in going on."""
        assert self._template is not None  # noqa: S101 - for the type checker
        self._hear_template()
        template, self._template = self._template, None
        template.close()
        if self._termination.asked or self._code_changed:
            return None
        for index in template.asked:
            self._roster.due[index] = 0.0
            # It may have been forked all the same, and not have been reported.
            pid, _ = self._heartbeats.read(index)
            if pid and pid not in self._roster.workers and _is_child(pid):
                del self._roster.due[index]
                self._begin(index, pid)
        now = time.monotonic()
        exit_code = os.waitstatus_to_exitcode(status)
        self._template_deaths = 0 if now - template.forked >= STARTED_AFTER else self._template_deaths + 1
        hopeless = exit_code == EXIT_CONFIGURATION or self._template_deaths >= HOPELESS_AFTER
        if hopeless and self._digest is None:
            return self._give_up(exit_code)
        self._template_due = now + pause_after(self._template_deaths)
        self._log.say("error", "template_died", pid=template.pid, exit_code=exit_code)
        return None

    # The workers.

    def _fork_due(self, now: float) -> None:
        if self._by_template and self._template is None:
            if now >= self._template_due and not self._code_changed:
                self._fork_template(now)
            return
        for index in self._roster.take_due(now):
            if self._template is not None:
                self._template.ask(index, self._certificate.pair)
            else:
                self._fork(index)

    def _fork(self, index: int) -> None:
        """Without a template."""

        def body() -> int:
            self._leave_master()
            self._load(self._received.settings)
            return self._work(index, self._certificate.pair)

        try:
            self._begin(index, forking.fork(body))
        except OSError as error:
            self._due_again(index, error.errno or 0)

    def _work(self, index: int, certificate: bytes) -> int:
        """In a worker."""
        self._heartbeats.begin(index)
        for number in (signal.SIGINT, signal.SIGHUP):
            # The master passes SIGINT on as SIGTERM, and a certificate not yet loaded needs no second loading.
            signal.signal(number, signal.SIG_IGN)
        forking.unblock_signals()
        assignment = Assignment(
            index,
            self._received,
            service=self._service,
            certificate=certificate,
            lifeline=self._lifeline,
            heartbeats=self._heartbeats,
            keeper=self._certificate.workers_end,
        )
        return self._serve(assignment)

    def _look(self, now: float) -> None:
        """Finds processes that have hung."""
        if self._template is not None and self._template.look(BEAT_SECONDS):
            self._log.say("error", "template_hung", pid=self._template.pid)
            os.kill(self._template.pid, signal.SIGKILL)
        hung = self._roster.look(now)
        if hung is not None:
            seconds = hung.watch.silent_looks * BEAT_SECONDS
            self._log.say("error", "worker_hung", index=hung.index, pid=hung.pid, seconds=seconds)

    def _reap(self) -> int | None:
        """Takes note of every process that ended. An exit status when there is no point in going on."""
        for pid in [pid for pid in self._ended_early if pid in self._roster.workers]:
            give_up = self._ended(pid, self._ended_early.pop(pid))
            if give_up is not None:
                return give_up
        if self._template is None or not self._template.asked:
            self._ended_early.clear()
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == 0:
                return None
            give_up = self._ended(pid, status)
            if give_up is not None:
                return give_up

    def _ended(self, pid: int, status: int) -> int | None:
        if self._template is not None and pid == self._template.pid:
            return self._template_ended(status)
        if pid not in self._roster.workers:
            # The master also inherits what workers leave behind; among it a worker may be that was not reported yet.
            if self._template is not None and self._template.asked:
                self._ended_early[pid] = status
            return None
        worker = self._roster.workers.pop(pid)
        return self._replace(worker, os.waitstatus_to_exitcode(status)) if not self._termination.asked else None

    def _replace(self, worker: Worker, exit_code: int) -> int | None:
        """An exit status when there is no point in going on."""
        index, pid = worker.index, worker.pid
        pause = self._roster.died(worker, at_once=exit_code == EXIT_CONFIGURATION)
        if pause is None:
            return self._give_up(exit_code)
        if self._code_changed:
            self._log.say("error", "worker_not_replaced", index=index, pid=pid, exit_code=exit_code)
            return None
        self._roster.due[index] = time.monotonic() + pause
        self._log.say("error", "worker_died", index=index, pid=pid, exit_code=exit_code, pause_seconds=pause)
        return None

    def _give_up(self, exit_code: int) -> int:
        self._log.say("critical", "start_failed", exit_code=exit_code)
        return self._kill_all(EXIT_CONFIGURATION if exit_code == EXIT_CONFIGURATION else 1)

    def _kill_all(self, status: int) -> int:
        self._roster.signal_all(signal.SIGKILL)
        pids = list(self._roster.workers)
        if self._template is not None:
            pids.append(self._template.pid)
            os.kill(self._template.pid, signal.SIGKILL)
        for pid in pids:
            if pid not in self._ended_early:
                os.waitpid(pid, 0)
        return status


def _is_child(pid: int) -> bool:
    """Whether a process is a running child of this one."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False
