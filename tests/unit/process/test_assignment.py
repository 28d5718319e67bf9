"""The last certificate pair that was good, kept by the master for the next worker."""

from __future__ import annotations

import os
import socket

from relay.process.assignment import _MOST_CERTIFICATE_OCTETS, CertificateKeeper
from relay.server.certificate import MAX_FILE_OCTETS


def send(keeper: CertificateKeeper, octets: bytes) -> None:
    with socket.socket(fileno=os.dup(keeper.workers_end)) as end:
        end.send(octets)


def test_without_news_the_pair_of_the_start_is_kept() -> None:
    keeper = CertificateKeeper(b"first")
    keeper.take()
    assert keeper.pair == b"first"


def test_of_several_the_last_is_kept() -> None:
    keeper = CertificateKeeper(b"first")
    for pair in (b"second", b"third"):
        send(keeper, pair)
    keeper.take()
    assert keeper.pair == b"third"


def test_the_largest_pair_comes_whole() -> None:
    assert _MOST_CERTIFICATE_OCTETS > 2 * MAX_FILE_OCTETS
    pair = os.urandom(_MOST_CERTIFICATE_OCTETS)
    keeper = CertificateKeeper(b"first")
    send(keeper, pair)
    keeper.take()
    assert keeper.pair == pair
