"""Where the code of tests lies, and which way it is imported (README, "Where it fits")."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Commands that run what lies in tests/; whatever else is in scripts/ knows nothing of it.
COMMANDS = {"scripts/soak.py", "scripts/fuzz.py", "scripts/try_clients.py"}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, and what it imports from them."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_scripts_that_tests_import_know_nothing_of_tests() -> None:
    paths = [path for path in (ROOT / "scripts").rglob("*.py") if path.relative_to(ROOT).as_posix() not in COMMANDS]
    assert paths
    assert [path.name for path in paths if any(name.split(".")[0] == "tests" for name in imported(path))] == []


def test_what_lies_in_support_imports_no_other_folder_of_tests() -> None:
    paths = list((ROOT / "tests" / "support").glob("*.py"))
    assert paths
    wrong = [
        f"{path.name}: {name}"
        for path in paths
        for name in imported(path)
        if name.startswith("tests.") and not name.startswith("tests.support")
    ]
    assert wrong == []
