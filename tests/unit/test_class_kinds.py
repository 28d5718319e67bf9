"""Which kind of class an object has is decided by one rule (relay/core/frozen.py), in all modules alike."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "relay").rglob("*.py"))
RULE = ROOT / "relay" / "core" / "frozen.py"


def breaches(text: str) -> Iterator[str]:
    """What the rule forbids, by line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                made = ast.unparse(decorator)
                if "dataclass" in made and made != "dataclass(slots=True)":
                    yield f"{node.lineno}: {node.name} is made by @{made}"
                if made.endswith("frozen") and made != "frozen":
                    yield f"{node.lineno}: {node.name} is made by @{made}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"namedtuple", "collections.namedtuple", "make_dataclass"}:
                yield f"{node.lineno}: {called}() makes a class without types"
            if called == "object.__setattr__":
                target = [ast.unparse(each) for each in node.args[:2]]
                if target[0] != "self" or not target[1].startswith("'_"):
                    yield f"{node.lineno}: {', '.join(target)} is set behind the type checker's back"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_classes_follow_the_rule(path: Path) -> None:
    if path != RULE:
        assert list(breaches(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "@dataclass\nclass A: ...",
        "@dataclass(frozen=True)\nclass A: ...",
        "@dataclass(frozen=True, slots=True)\nclass A: ...",
        "@dataclasses.dataclass(slots=True)\nclass A: ...",
        "@other.frozen\nclass A: ...",
        "A = namedtuple('A', 'x y')",
        "object.__setattr__(other, '_octets', b'')",
        "object.__setattr__(self, 'code', 250)",
    ],
)
def test_the_search_finds_other_forms(code: str) -> None:
    assert len(list(breaches(code))) == 1


def test_the_type_checker_refuses_an_assignment(tmp_path: Path) -> None:
    """Nothing else does, so this has to hold."""
    from mypy import api

    module = tmp_path / "changed.py"
    module.write_text(
        "from relay.core.records import ApiKey\n"
        'key = ApiKey(id="", user_id="", permission="", domain=None)\n'
        'key.domain = "example.com"\n'
    )
    shown, _, status = api.run(
        [str(module), "--cache-dir", str(tmp_path), "--config-file", str(ROOT / "pyproject.toml"), "--no-incremental"]
    )
    assert status == 1
    assert 'Property "domain" defined in "ApiKey" is read-only' in shown


def names_an_underscore_apart(texts: dict[str, str]) -> list[list[str]]:
    """Classes that differ from another by an underscore before the name: `Session` and `_Session`."""
    found: dict[str, dict[str, str]] = {}
    for where, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name.strip("_"), {})[node.name] = f"{where}: {node.name}"
    return [sorted(names.values()) for names in found.values() if len(names) > 1]


def test_no_class_differs_from_another_by_an_underscore() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in SOURCES}
    assert names_an_underscore_apart(texts) == []


def test_the_search_finds_names_an_underscore_apart() -> None:
    assert names_an_underscore_apart({"a.py": "class Session: ...", "b.py": "def f():\n class _Session: ..."}) == [
        ["a.py: Session", "b.py: _Session"]
    ]
