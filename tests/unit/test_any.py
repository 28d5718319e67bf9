"""`Any` switches the type checker off. Lines with it are few, and each is there for a reason."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("relay", "config", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
#: Lines that may name it, imports among them. To be lowered where there are fewer.
MOST = 18


def lines_with_any(text: str) -> set[int]:
    """The numbers of the lines whose code names `Any`; comments and docstrings don't count."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.NAME and token.string == "Any"}


def test_few_lines_name_any() -> None:
    found = {path.relative_to(ROOT): lines_with_any(path.read_text()) for path in SOURCES}
    count = sum(map(len, found.values()))
    assert count <= MOST, {str(path): sorted(lines) for path, lines in found.items() if lines}


def test_the_count_leaves_prose_out() -> None:
    assert lines_with_any('"""Any."""\nfrom typing import Any\nx: dict[str, Any] = {}  # Any\n') == {2, 3}
