"""Addresses are compared in one form, and `relay.core.address.comparison_form` alone makes it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted((ROOT / "relay").rglob("*.py"))
#: Names of what holds a whole address.
ADDRESS = re.compile(r"(^|_)(address|addresses|mailbox|recipient|forward_path|reverse_path)$")
#: `address_of`, `.address`, `each[1]` are found by the name that they end in.
FOLDS = {"lower", "casefold", "upper"}


def foldings(text: str) -> Iterator[int]:
    """Lines on which an address changes its case."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FOLDS:
            holder: ast.expr = node.func.value
            while isinstance(holder, ast.Call) and isinstance(holder.func, ast.Attribute):  # address.strip().lower()
                holder = holder.func.value
            if ADDRESS.search(ast.unparse(holder).rpartition(".")[2]):
                yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_folds_the_case_of_an_address_by_itself(path: Path) -> None:
    expected = 1 if path == ROOT / "relay" / "core" / "address.py" else 0
    assert len(list(foldings(path.read_text()))) == expected


@pytest.mark.parametrize("code", ["address.lower()", "row.recipient.strip().casefold()", "seen.get(mailbox.lower())"])
def test_the_search_finds_it(code: str) -> None:
    assert len(list(foldings(code))) == 1
