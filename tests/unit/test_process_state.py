"""What a process keeps in modules and classes is announced: docs/architecture.md lists it, and there is nothing else.

Found in the syntax trees of `relay` and `config`: names of a module that are bound anew, containers that functions
change, attributes of classes that are set from outside an object, objects of classes that change, functions that keep
results, and changes of what belongs to others at import.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("relay", "config")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
#: Methods that change what they are called on.
CHANGES = {
    *("append", "appendleft", "add", "update", "clear", "pop", "popleft", "popitem", "setdefault", "discard", "remove"),
    *("extend", "insert", "move_to_end", "sort", "reverse", "set", "__setitem__", "setattr"),
}
KEEPS = {"memoised", "lru_cache", "cache"}
#: All metrics are one kind of state, listed once.
METRICS = "relay/core/metrics.py::FAMILIES"


def unchanging(tree: ast.Module) -> set[str]:
    """Classes whose objects never change: frozen, tuples, enumerations, exceptions, protocols."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2].partition("[")[0] for base in node.bases}
            made = {ast.unparse(decorator) for decorator in node.decorator_list}
            sets = [
                target
                for method in node.body
                if isinstance(method, ast.FunctionDef) and method.name != "__init__"
                for target in attributes_set(method)
                if target.startswith("self.")
            ]
            if "frozen" in made or bases & {"NamedTuple", "Enum", "StrEnum", "Protocol"} or not (sets or made):
                found.add(node.name)
    return found


def attributes_set(node: ast.AST) -> Iterator[str]:
    """`a.b` for each attribute, or content of one, that is bound or changed in there."""
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute | ast.Subscript) and isinstance(each.ctx, ast.Store | ast.Del):
            target: ast.expr = each
            while isinstance(target, ast.Subscript):
                target = target.value
            yield ast.unparse(target)
        elif isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr in CHANGES:
            target = each.func.value
            while isinstance(target, ast.Subscript):
                target = target.value
            yield ast.unparse(target)


def imported(tree: ast.Module) -> dict[str, str]:
    """The file that each class or module of ours comes from, by the name that it has here."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                for path in (f"{node.module}.{name.name}", node.module):
                    file = path.replace(".", "/") + ".py"
                    if file in SOURCES:
                        found[name.asname or name.name] = file
                        break
    return found


def names_of(tree: ast.Module) -> dict[str, ast.expr]:
    """The values that a module gives to its names."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    return found


class Module:
    """One module, and what its names are."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.tree = ast.parse(text)
        self.names = names_of(self.tree)
        self.classes = {node.name for node in self.tree.body if isinstance(node, ast.ClassDef)}
        self.imported = imported(self.tree)
        self.foreign = {
            (name.asname or name.name).partition(".")[0]
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Import)
            for name in node.names
        } - {"config", "relay"}

    def state(self) -> Iterator[str]:
        """`file::name` of what changes while the process runs, here or elsewhere by what is here."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Global):
                yield from (f"{self.file}::{name}" for name in node.names)
            elif isinstance(node, ast.FunctionDef):
                yield from self._changed_in(node)
                if any(maker_of(decorator) in KEEPS for decorator in node.decorator_list):
                    yield f"{self.file}::{node.name}"
            elif isinstance(node, ast.ClassDef):
                yield from self._changed_of_class(node)
        yield from self._objects()
        yield from self._patches()

    def _changed_in(self, function: ast.FunctionDef) -> Iterator[str]:
        own = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
        own |= {
            node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        for target in attributes_set(function):
            owner, _, attribute = target.partition(".")
            if owner in own:
                continue
            if owner in self.names:
                yield f"{self.file}::{owner}"
            elif owner in self.classes | self.foreign and attribute:
                yield f"{self.file}::{target}"
            elif owner in self.imported and attribute:
                yield f"{self.imported[owner]}::{target if owner[0].isupper() else attribute.partition('.')[0]}"

    def _changed_of_class(self, node: ast.ClassDef) -> Iterator[str]:
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and "classmethod" in map(ast.unparse, method.decorator_list):
                for target in attributes_set(method):
                    if target.startswith("cls."):
                        yield f"{self.file}::{node.name}.{target.partition('.')[2]}"

    def _objects(self) -> Iterator[str]:
        for name, value in self.names.items():
            if isinstance(value, ast.Call):
                called = ast.unparse(value.func)
                home = ast.parse(SOURCES[self.imported[called]]) if called in self.imported else self.tree
                mine = {node.name for node in home.body if isinstance(node, ast.ClassDef)}
                if maker_of(value.func) in KEEPS or called in mine - unchanging(home):
                    yield f"{self.file}::{name}"

    def _patches(self) -> Iterator[str]:
        for node in self.tree.body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                called = ast.unparse(node.value.func)
                if called.partition("(")[0] not in self.classes | self.names.keys():
                    yield f"{self.file}::{called}"
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript):
                yield f"{self.file}::{ast.unparse(node.targets[0])}"


def maker_of(node: ast.expr) -> str:
    """The last name of a decorator, or of the function that makes one."""
    return ast.unparse(node).partition("(")[0].rpartition(".")[2]


def found() -> set[str]:
    """All of it, the metrics as one."""
    everything = {state for file, text in SOURCES.items() for state in Module(file, text).state()}
    return {METRICS if is_metric(each) else each for each in everything}


def is_metric(state: str) -> bool:
    file, _, name = state.partition("::")
    value = names_of(ast.parse(SOURCES[file])).get(name.partition(".")[0])
    if file == METRICS.partition("::")[0]:
        return True
    return value is not None and re.match(r"metrics\.[A-Z_]+\.labels\(", ast.unparse(value)) is not None


def announced() -> set[str]:
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.partition("## State of a process")[2].partition("\n## ")[0]
    listed = re.findall(r"`([\w/]+\.py::[\w.()\"']+)`", section)
    assert len(listed) == len(set(listed)), "announced twice"
    return set(listed)


def test_all_state_of_a_process_is_announced() -> None:
    assert sorted(found() - announced()) == []


def test_nothing_is_announced_that_is_gone() -> None:
    assert sorted(announced() - found()) == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("seen = {}\ndef f(k): seen[k] = 1", "seen"),
        ("seen = []\ndef f(k): seen.append(k)", "seen"),
        ("seen: dict = {}\ndef f(k): del seen[k]", "seen"),
        ("seen = {}\ndef f(k): seen[k].add(1)", "seen"),
        ("count = 0\ndef f():\n    global count\n    count += 1", "count"),
        ("class A:\n    count = 0\n    def f(self): A.count += 1", "A.count"),
        ("class A:\n    count = 0\n    @classmethod\n    def f(cls): cls.count += 1", "A.count"),
        ("class A:\n    def f(self): self.x = 1\n\n\nONE = A()", "ONE"),
        ("from relay.smtp.timeouts import Waits\nONE = Waits()", "ONE"),
        ("@lru_cache(maxsize=1)\ndef f(): return 1", "f"),
        ("@functools.cache\ndef f(): return 1", "f"),
        ("f = memoised(entries=1, octets=1)(g)", "f"),
        ("import socket\nsocket.create_connection = None", "socket.create_connection"),
        ("monkey.patch_all()", "monkey.patch_all"),
    ],
)
def test_the_search_finds_state(code: str, name: str) -> None:
    assert set(Module("relay/x.py", code).state()) == {f"relay/x.py::{name}"}


@pytest.mark.parametrize(
    "code",
    [
        "TABLE = {'a': 1}\ndef f(k): return TABLE[k]",
        "def f():\n    seen = {}\n    seen[1] = 2",
        "class A:\n    def f(self): self.x = 1",
        "@frozen\nclass A:\n    x: int\n\n\nONE = A(1)",
    ],
)
def test_what_does_not_change_is_no_state(code: str) -> None:
    assert set(Module("relay/x.py", code).state()) == set()
