"""Signals arrive as numbers in a pipe, each of them, and never make a read wait."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from relay.process import forking
from relay.process.signal_pipe import SignalPipe


@pytest.fixture
def pipe() -> Iterator[SignalPipe]:
    before = {number: signal.getsignal(number) for number in forking.HANDLED}
    made = SignalPipe()
    yield made
    writing = signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)
    made.leave()
    os.close(writing)


def test_numbers_of_signals(pipe: SignalPipe) -> None:
    assert pipe.read() == b""
    for number in forking.HANDLED:
        signal.raise_signal(number)
    assert list(pipe.read()) == list(forking.HANDLED)
    assert pipe.read() == b""


def test_more_signals_than_the_pipe_holds_block_no_process(pipe: SignalPipe) -> None:
    for _ in range(70_000):
        signal.raise_signal(signal.SIGHUP)
    assert set(pipe.read()) == {signal.SIGHUP}
