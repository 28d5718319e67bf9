"""Fields of one type are filled by their names: no type checker sees that cc and bcc were exchanged.

Functions take at most four values by position. What is further has to be named, whatever its type: a call with five
says nothing of what each of them is.

Read from the syntax trees of `relay`. Named tuples are left out: they are for what has an order by nature. Where names
cost too much, `# perf:` above the call says how much, and tests/unit/test_field_order.py looks at each field.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "relay").rglob("*.py"))
SETTINGS = sorted((ROOT / "config").rglob("*.py"))
#: Values that a function takes by position.
MOST = 4
#: Classes with a natural order -> which one it is.
NATURAL = {
    ("relay.mail.part", "Part"): "offsets, ascending",
    ("relay.mail.flanker_scan", "Span"): "offsets, ascending",
    ("relay.delivery.outcome", "Failed"): "code, message: as each error of AWS has them",
}
#: How many lines above a call its reason may begin.
_ABOVE = 4


def kind_of(annotation: ast.expr) -> str:
    """A type, as far as two values of it could be exchanged: optional or not, tuple or list."""
    text = ast.unparse(annotation).strip("'\"").removesuffix(" | None")
    return re.sub(r"^(tuple|list|Sequence|Collection|Iterable)\[([^,\]]*)(, \.\.\.)?\]$", r"Sequence[\2]", text)


def fields_of(node: ast.ClassDef) -> list[str] | None:
    """The types of what the class's objects are made of, in order; None where it is no class of that sort."""
    made = {ast.unparse(decorator) for decorator in node.decorator_list}
    if made & {"frozen", "dataclass(slots=True)"}:
        return [
            kind_of(each.annotation)
            for each in node.body
            if isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each.annotation)
        ]
    return None


def classes(texts: dict[str, str]) -> dict[tuple[str, str], list[str]]:
    """(module, class) -> types of the fields."""
    return {
        (module, node.name): fields
        for module, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and (fields := fields_of(node)) is not None
    }


def origins(module: str, tree: ast.AST) -> dict[str, tuple[str, str]]:
    """Which class each name of a module is."""
    found = {node.name: (module, node.name) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {name.asname or name.name: (node.module, name.name) for name in node.names}
    return found


def breaches(module: str, text: str, known: dict[tuple[str, str], list[str]]) -> Iterator[str]:
    """Calls that fill two fields of one type by position, by line."""
    tree, lines = ast.parse(text), text.splitlines()
    names = origins(module, tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        of_class = names.get(node.func.id, ("", ""))
        fields = known.get(of_class)
        if fields is None or of_class in NATURAL:
            continue
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        filled = Counter(fields if starred else fields[: len(node.args)])
        twice = [kind for kind, count in filled.items() if count > 1]
        above = lines[max(0, node.lineno - 1 - _ABOVE) : node.lineno]
        if twice and not any("# perf:" in line for line in above):
            yield f"{node.lineno}: {node.func.id} is given several {', '.join(twice)} by position"


TEXTS = {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text() for path in SOURCES}
CLASSES = classes(TEXTS)


@pytest.mark.parametrize("module", TEXTS)
def test_fields_of_one_type_are_filled_by_name(module: str) -> None:
    assert list(breaches(module, TEXTS[module], CLASSES)) == []


@pytest.mark.parametrize(
    "call",
    ["Row(to, cc)", "Row(*fields)", "Row(to, cc, subject='')", "Plain(1, 2)", "Row(*map(tuple, fields), subject='')"],
)
def test_the_search_finds_exchangeable_values(call: str) -> None:
    text = (
        "@frozen\nclass Row:\n    to: tuple[str, ...]\n    cc: Sequence[str]\n    subject: str\n"
        "@dataclass(slots=True)\nclass Plain:\n    reading: int\n    writing: int | None\n\n\n\n"
    )
    known = classes({"m": text})
    assert len(list(breaches("m", text + call, known))) == 1
    assert list(breaches("m", text + f"# perf: 1 µs\n{call}", known)) == []
    assert list(breaches("m", text + "Row(to=to, cc=cc, subject='')\nPlain(1, writing=2)", known)) == []


def test_each_class_with_a_natural_order_is_there() -> None:
    assert NATURAL.keys() - CLASSES.keys() == set()


def long_signatures(text: str) -> Iterator[str]:
    """Functions that take more than MOST values by position, by line. A method's own object does not count."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            taken = [each.arg for each in (*node.args.posonlyargs, *node.args.args) if each.arg not in {"self", "cls"}]
            if len(taken) > MOST:
                yield f"{node.lineno}: {', '.join(taken)} may be given by position"


@pytest.mark.parametrize("path", SOURCES + SETTINGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_take_few_values_by_position(path: Path) -> None:
    assert list(long_signatures(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    ["def f(a, b, c, d, e): ...", "class A:\n    def f(self, a, b, c, d, /, e=1): ...", "f = lambda a, b, c, d, e: a"],
)
def test_the_search_finds_long_signatures(code: str) -> None:
    assert len(list(long_signatures(code))) == 1


def test_values_by_name_do_not_count() -> None:
    assert list(long_signatures("class A:\n    def f(self, a, b, c, d, *rest, e, g=1, **more): ...")) == []
