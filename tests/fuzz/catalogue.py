"""What is fuzzed: one module of tests/fuzz/targets each, and the inputs that are kept for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: In the order in which they run.
NAMES: Final = ("framing", "path", "sasl", "proxy", "parameters", "addresses", "dialogue", "message", "token", "sns")
_KEPT: Final = Path(__file__).resolve().parent / "corpus"


@dataclass(frozen=True)
class Target:
    """A piece of the relay, and what must hold for it whatever the input is."""

    name: str
    #: Raises where it doesn't hold; whatever it raises is a finding.
    check: Callable[[bytes], None]
    #: Inputs to begin with.
    seeds: Callable[[], Iterable[bytes]]
    #: What is put into inputs more often than chance would.
    tokens: tuple[bytes, ...]
    #: The longest input that is tried.
    max_octets: int


def load(name: str) -> Target:
    """The target of that name. Imports what it is about, which a fuzzer has to prepare for."""
    module = importlib.import_module(f"tests.fuzz.targets.{name}")
    return Target(name, module.check, module.seeds, module.TOKENS, module.MAX_OCTETS)


def kept(name: str) -> list[bytes]:
    """The inputs that earlier runs kept: the fewest that reach all that was reached."""
    path = _KEPT / f"{name}.txt"
    if not path.exists():
        return []
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in path.read_text("ascii").splitlines()]


def keep(name: str, inputs: Iterable[bytes]) -> None:
    """Writes the inputs that later runs begin with: one a line, what isn't printable ASCII escaped."""
    lines = sorted(each.decode("latin-1").encode("unicode_escape").decode("ascii") for each in inputs)
    _KEPT.mkdir(exist_ok=True)
    (_KEPT / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), "ascii")
