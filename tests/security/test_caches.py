"""Caches that a client's words fill: each is found by looking, and each is bounded in octets.

What is looked for is any of the three kinds: functions that keep results, containers of a module or a class that grow
while mails are read, and memory that stays wherever it is kept (the standard library's and flanker's own included).
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib.util
import inspect
import pkgutil
import sys
import tracemalloc
import typing
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import config
import relay
from relay.core.address import normalise_domain
from relay.core.memo import Memo, octets_of
from relay.mail import Unusable, header_block, parse
from relay.smtp.path import parse_path
from tests.security.long_messages import VALUES as PLACES

LARGE = 950_000
#: Octets that all entries of one cache may take, keys alone, and all caches together with what they hold.
MOST_OF_KEYS = 3_000_000
MOST_OF_ALL = 24_000_000
KEEPS_ALL = {"lru_cache", "cached_property"}


def sources() -> dict[str, str]:
    """The text of all modules of the relay, by their names."""
    found = {}
    for package in (relay, config):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            spec = importlib.util.find_spec(info.name)
            if spec is not None and spec.origin and not info.ispkg:
                found[info.name] = Path(spec.origin).read_text("utf-8")
    return found


def everything_imported() -> list[Any]:
    """All modules but the entry points of processes, which patch the standard library when they are imported."""
    return [
        importlib.import_module(name)
        for name, text in sources().items()
        if "patch_all" not in text and not name.endswith("__main__")
    ]


MODULES = everything_imported()
MEMOS = {
    f"{each._function.__module__}.{each._function.__name__}": each
    for each in gc.get_objects()
    if type(each) is Memo and each._function.__module__.startswith(("relay.", "config."))
}


def key(kind: Any, text: str) -> Any:
    """An argument of that annotated kind, made of `text`."""
    if kind is str:
        return text
    if kind is bytes:
        return text.encode("latin-1")
    if kind is bool or kind is int:
        return False
    if typing.get_origin(kind) is tuple:
        return tuple(key(each, text) for each in typing.get_args(kind) if each is not ...)
    options = [each for each in typing.get_args(kind) if each is not type(None)]
    return key(options[0], text)


def argument(memo: Memo[Any, Any], text: str) -> Any:
    hints = typing.get_type_hints(memo._function)
    (name,) = inspect.signature(memo._function).parameters
    return key(hints[name], text)


def ask(memo: Memo[Any, Any], text: str) -> None:
    # What no name is made of is refused, in different ways.
    with contextlib.suppress(ValueError, LookupError, Unusable):
        memo[argument(memo, text)]


def test_the_known_caches_are_found() -> None:
    assert len(MEMOS) >= 11, sorted(MEMOS)
    assert normalise_domain.__self__ in MEMOS.values()  # type: ignore[attr-defined]
    assert parse_path.__self__ in MEMOS.values()  # type: ignore[attr-defined]


def test_no_function_counts_entries_alone() -> None:
    """functools.lru_cache knows no octets: it is for functions of numbers alone."""
    found = []
    for name, text in sources().items():
        tree = ast.parse(text)
        numeric = {
            id(decorator)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            and all(ast.unparse(each.annotation or each) in ("int", "bool", "float") for each in node.args.args)
            for decorator in map(called, node.decorator_list)
        }
        found += [
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute | ast.Name)
            and ast.unparse(node).rpartition(".")[2] in KEEPS_ALL
            and id(node) not in numeric
        ]
    assert found == []


def called(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


@pytest.mark.parametrize("name", sorted(MEMOS))
def test_a_long_argument_is_not_kept(name: str) -> None:
    memo = MEMOS[name]
    memo.clear()
    for text in ("x" * LARGE, "x." * (LARGE // 2), "\xe4" * LARGE, "a" * (2 * memo.octets)):
        ask(memo, text)
    assert not memo


@pytest.mark.parametrize("name", sorted(MEMOS))
def test_entries_times_octets_is_the_bound(name: str) -> None:
    memo = MEMOS[name]
    assert memo.entries * memo.octets <= MOST_OF_KEYS
    memo.clear()
    for number in range(3 * memo.entries // 2):
        ask(memo, f"a{number}.example")
    assert len(memo) <= memo.entries
    assert sum(map(octets_of, memo)) <= MOST_OF_KEYS
    memo.clear()


def mail(place: str, value: str) -> bytes:
    """A message with `value` at that place."""
    text = PLACES[place]
    return text.replace("%s", value).replace("%%", "%").encode("latin-1")


def read(raw: bytes) -> None:
    with contextlib.suppress(Unusable):
        parse(raw)


def emptied() -> None:
    """Empties all caches that are known to be bounded."""
    for memo in MEMOS.values():
        memo.clear()
    header_block._lines.clear()


def kept_by(work: Callable[[], None]) -> int:
    """Octets that are still there after `work`, and were not before."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("place", sorted(PLACES))
def test_a_large_value_leaves_nothing_behind(place: str) -> None:
    """Of four mails with 0.95 MB of another value each nothing stays, in no cache of any library."""
    read(mail(place, "warm"))

    def work() -> None:
        for number in range(4):
            read(mail(place, f"v{number}" + "x" * LARGE))

    assert kept_by(work) < LARGE // 4


@pytest.mark.parametrize("place", sorted(PLACES))
def test_many_values_are_kept_in_no_other_cache(place: str) -> None:
    """Of 2,000 mails with another short value each nothing stays but in the caches that are bounded."""

    def work() -> None:
        for number in range(2000):
            read(mail(place, f"v{number}"))
        emptied()

    read(mail(place, "warm"))
    emptied()
    # What is kept of each value would be some hundred octets. Less than 32 is the allocator's.
    assert kept_by(work) < 2000 * 32


def containers() -> Iterator[tuple[str, Any]]:
    """Every container that a module of the relay, or one of its classes, holds by a name."""
    for module in MODULES:
        spaces = [(module.__name__, vars(module))]
        spaces += [
            (f"{module.__name__}.{name}", dict(vars(each)))
            for name, each in vars(module).items()
            if isinstance(each, type) and each.__module__ == module.__name__
        ]
        for space, names in spaces:
            for name, value in list(names.items()):
                if isinstance(value, dict | list | set | deque | OrderedDict) and name != "__builtins__":
                    yield f"{space}.{name}", value


#: Containers of modules that may grow while mails are read, with the most entries and the octets of each key.
GROWING = {
    "relay.mail.header_block._lines": (header_block._MAX_REMEMBERED, 2 * header_block._MAX_REMEMBERED_LINE),
}


def test_no_other_container_grows() -> None:
    """After 3,000 mails of other values the containers of all modules are as they were, but for those named."""
    before = {name: len(value) for name, value in containers()}
    for number in range(3000):
        for place in ("User-Agent", "charset", "domain", "boundary", "field of a part"):
            read(mail(place, f"v{number}"))
        parse_path(f"<a@b{number}.example>")
    after = dict(containers())
    grown = {name for name, size in before.items() if len(after[name]) > size}
    assert grown <= GROWING.keys()
    for name, (most, octets) in GROWING.items():
        assert len(after[name]) <= most
        assert most * octets <= MOST_OF_KEYS
        assert max(map(sys.getsizeof, after[name])) <= octets


def test_all_caches_together() -> None:
    """Each cache full of the longest keys that it takes: what all of them hold, in octets."""
    for memo in MEMOS.values():
        memo.clear()

    def work() -> None:
        for memo in MEMOS.values():
            for number in range(memo.entries):
                room = memo.octets - octets_of(argument(memo, "")) - 8
                parts = max(1, str(argument(memo, "\x01")).count("\\x01") or 1)
                ask(memo, (f"a{number}." + "b123456789." * (memo.octets // 11))[: room // parts].rstrip("."))

    kept = kept_by(work)
    for memo in MEMOS.values():
        memo.clear()
    assert kept < MOST_OF_ALL
