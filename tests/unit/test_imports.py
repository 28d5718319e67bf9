"""Which room imports which: downwards only, without circles (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: From the top to the bottom. A room imports from those in the lines below its own, and from itself.
FLOORS = (
    ("relay.command",),
    ("relay.__main__",),
    ("relay.process",),
    ("relay.operator",),
    ("relay.web", "relay.server", "relay.delivery"),
    ("relay.intake",),
    ("relay.jobs", "relay.smtp", "relay.limits"),
    ("relay.mail", "relay.postgres", "relay.redis", "relay.aws"),
    ("relay.core",),
    ("relay.version",),
    ("config",),
)
#: Beside the order of the floors.
NEVER = {("relay.delivery", "relay.intake"), ("relay.delivery", "relay.smtp"), ("relay.delivery", "relay.limits")}


def modules() -> Iterator[tuple[str, Path]]:
    for folder in ("relay", "config"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def room(module: str) -> str:
    if module == "relay":
        return "relay.version"
    if module.endswith(".__main__"):
        return "relay.__main__"  # commands put processes together, wherever they stand
    return "config" if module.split(".", maxsplit=1)[0] == "config" else ".".join(module.split(".")[:2])


def floor(of_room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if of_room in rooms)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Each module of ours that is imported, anywhere in the file, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield (whole if whole in MODULES else node.module), node.lineno


def arrows() -> Iterator[tuple[str, str, str]]:
    """From which module, to which one, and where that stands."""
    for module, path in MODULES.items():
        for target, line in imports(path):
            if target in MODULES:
                yield module, target, f"{path.relative_to(ROOT)}:{line}"


def test_every_room_has_a_floor() -> None:
    for module in MODULES:
        floor(room(module))


def test_rooms_import_downwards() -> None:
    wrong = []
    for module, target, where in arrows():
        above, below = room(module), room(target)
        if above != below and (floor(above) >= floor(below) or (above, below) in NEVER):
            wrong.append(f"{where}: {above} imports {below}")
    assert wrong == []


def test_modules_import_without_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, target, _ in arrows():
        if target not in {module, "relay"}:
            graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" > ".join(error.args[1]))


def test_libraries_stay_in_their_rooms() -> None:
    """The dialogue knows no database; flanker is imported in relay/mail alone, pydantic in config alone."""
    homes = {"flanker": "relay.mail", "pydantic": "config", "psycopg2": "", "redis": "", "boto3": "", "botocore": ""}
    banned = {"psycopg2", "redis", "boto3", "botocore", "flanker"}
    wrong = []
    for module, path in MODULES.items():
        for target, line in imports(path):
            library = target.split(".")[0]
            home = homes.get(library, "")
            if (home and room(module) != home) or (room(module) == "relay.smtp" and library in banned):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {module} imports {library}")
    assert wrong == []


def test_nothing_is_imported_before_the_standard_library_is_patched() -> None:
    """What is imported before `monkey.patch_all()` keeps the blocking calls, and stops the whole process with them."""
    patching = 0
    for path in MODULES.values():
        body = ast.parse(path.read_text()).body
        calls = [index for index, node in enumerate(body) if ast.unparse(node) == "monkey.patch_all()"]
        if calls:
            patching += 1
            before = [ast.unparse(node) for node in body[: calls[0]] if isinstance(node, ast.Import | ast.ImportFrom)]
            assert before == ["from gevent import monkey"], path
    assert patching >= 1


def test_key_names_are_in_one_module() -> None:
    """Every name of ours in Redis begins with `smtp-relay:`, and stands in relay/redis/keys.py alone."""
    elsewhere = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for module, path in MODULES.items()
        if module != "relay.redis.keys"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, bytes | str)
        and (node.value if isinstance(node.value, bytes) else node.value.encode("utf-8", "surrogatepass")).startswith(
            (b"smtp-relay:", b"auth:apikey:")
        )
    ]
    assert elsewhere == []


def test_the_test_finds_what_it_looks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from relay.intake import policy\n")
    monkeypatch.setitem(MODULES, "relay.core.x", path)
    assert list(imports(path)) == [("relay.intake.policy", 2)]
    assert floor(room("relay.core.x")) > floor(room("relay.intake.policy"))
