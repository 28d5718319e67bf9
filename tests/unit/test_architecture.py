"""docs/architecture.md is compared with the tree: its pictures, its table of packages, and where to change what."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = sorted(path.parent.name for path in (ROOT / "relay").glob("*/__init__.py"))
#: A module as the pictures name it: without `relay/`, maybe with a function or class behind it.
_IN_PICTURE = re.compile(rf"\b({'|'.join(PACKAGES)})/(\w+)(?:\.(\w+))?")


def pictures() -> str:
    """The indented lines."""
    return "\n".join(line for line in PAGE.splitlines() if line.startswith("    "))


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def missing_in(text: str) -> list[str]:
    """What a picture names and the tree has not."""
    found = []
    for package, module, name in _IN_PICTURE.findall(text):
        path = ROOT / "relay" / package / f"{module}.py"
        if not path.exists() or (name and not re.search(rf"\b(?:def|class) {name}\b", path.read_text())):
            found.append(f"{package}/{module}{'.' if name else ''}{name}")
    return found


def test_each_module_of_the_pictures_is_there() -> None:
    assert len(_IN_PICTURE.findall(pictures())) > 40
    assert missing_in(pictures()) == []


def test_each_package_is_in_the_table_of_packages() -> None:
    listed = re.findall(r"`relay/(\w+)`", "".join(row[0] for row in rows("Packages")))
    assert sorted(listed) == PACKAGES


def test_each_kind_of_change_has_a_place_and_a_test() -> None:
    answers = rows("Where do I change …")
    assert len(answers) >= 20
    for what, where, test in answers:
        assert re.search(r"`(relay|config)/[\w/.]+`", where), what
        assert re.search(r"`tests/[\w/.*]+`", test), what


def test_each_service_is_among_the_processes() -> None:
    for path in (ROOT / "relay" / "process").glob("*_children.py"):
        service = path.name.partition("_")[0]
        assert f"python -m relay.{service}" in section("Processes")
        assert f"`relay/process/{path.name}`" in section("Processes")


def test_the_search_finds_what_is_gone() -> None:
    assert missing_in("    smtp/session ─▶ smtp/nothing, smtp/session.Session, smtp/session.Nothing") == [
        "smtp/nothing",
        "smtp/session.Nothing",
    ]
