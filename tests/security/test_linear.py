"""Time in proportion to length: of each expression that a client's octets reach, and of each message with long runs.

Nothing here is a list of inputs that were slow once. The expressions are those that a hook finds (see
`tests.security.expressions`), the inputs are built from their parts (`tests.security.attacks`); the messages have long
runs of everything in every place (`tests.security.long_messages`). Time is CPU time, and the least of several; where it
is above that of linear work, it is taken at doubling sizes before anything is said.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.mail import flanker_scan
from tests.security import attacks, long_messages
from tests.security.attacks import Attack, Expression
from tests.security.long_messages import PLACES, grows

ROOT = Path(__file__).resolve().parents[2]
#: Characters of a run. Quadratic work on them takes tens of milliseconds, linear work microseconds.
SIZE = 4096
SECONDS = 0.004
SHARES = 4
#: Expressions that take more than linear time, and what they are never given: name → whether a text can get to them.
GUARDED: dict[str, Callable[[str], bool]] = {
    # flanker's own: two repetitions of blanks stand side by side in it.
    "flanker.mime.message.headers.parametrized._RE_OLD_STYLE_PARAM": lambda text: (
        flanker_scan._TOO_MANY_BLANKS not in text.translate(flanker_scan._TO_BLANKS)
    ),
}


@pytest.fixture(scope="module")
def reached() -> list[Expression]:
    """Every expression that ran on anything that a client sent."""
    command = [sys.executable, "-m", "tests.security.expressions"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [Expression(**json.loads(line)) for line in done.stdout.splitlines()]


def written() -> dict[str, str]:
    """The expressions of the rooms that read what clients send: names → modules, by the assignments in the source."""
    found = {}
    for room in ("mail", "smtp", "core"):
        for path in sorted((ROOT / "relay" / room).glob("*.py")):
            module = f"relay.{room}.{path.stem}"
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("re.compile("):
                    found[f"{module}.{ast.unparse(node.targets[0])}"] = module
    return found


def test_each_expression_is_reached(reached: list[Expression]) -> None:
    names = {each.name for each in reached}
    assert written().keys() - names == set()
    # flanker's: header lines, parameters in both styles, encoded words, the structure; its grammar of addresses.
    parametrized = "flanker.mime.message.headers.parametrized"
    assert {
        f"{parametrized}._RE_HEADER_VALUE",
        f"{parametrized}._RE_OLD_STYLE_PARAM",
        f"{parametrized}._RE_NEW_STYLE_PARAM",
        "flanker.mime.message.headers.encodedword._RE_ENCODED_WORD",
        "flanker.mime.message.scanner._RE_TOKENIZER",
        "ply.lex",
    } <= names
    assert len(reached) >= 90


def growth(expression: Expression, method: str, attack: Attack, size: int) -> str | None:
    """What speaks for more than linear time."""
    compiled = expression.compiled()
    comes_through = GUARDED.get(expression.name)

    def work(length: int) -> float:
        text = attack.text(length)
        if comes_through is not None and not comes_through(text):
            return 0.0
        began = time.process_time()
        attacks.run(compiled, method, text, expression.octets)
        return time.process_time() - began

    for small in (16, 20, 24, 28, 32, 36, 40, 64):
        # What grows exponentially would never come back from the size below.
        if work(small) > 0.02:
            return f"{small} characters take over 20 ms"
    return grows(work, size, SECONDS)


@pytest.mark.parametrize("share", range(SHARES))
def test_each_expression_takes_linear_time(reached: list[Expression], share: int) -> None:
    slow: dict[str, str] = {}
    for expression in reached[share::SHARES]:
        for method in expression.longest:
            for attack in attacks.attacks(expression):
                found = growth(expression, method, attack, SIZE)
                if found:
                    slow.setdefault(expression.name, f"{method} {attack!r}: {found}")
                    break
    assert slow == {}


def test_the_search_finds_what_is_slow() -> None:
    """Expressions that are known to be quadratic, cubic or exponential, some of them the relay's own of before."""
    for pattern, flags, octets, method in (
        (r"^begin(?:-base64)?[ \t]+[0-7]{3,4}[ \t]*([^\r\n]*)\r?\n", re.MULTILINE, True, "search"),
        (r"([a-z.]++)@([a-z]+)", 0, False, "search"),
        (r"a[ \t]*=[ \t]*\"?[ \t]*x", 0, False, "match"),
        (r"[ \t]+\Z", 0, False, "search"),
        (r"(?:a|a.)*b", 0, False, "match"),
        (r"(a+)+b", 0, False, "match"),
        (r"<.*>x", re.DOTALL, False, "findall"),
        (r"\s+=\s*;", 0, False, "sub"),
        (r"[^ ]*[^a]*[^b]*c", 0, False, "fullmatch"),
    ):
        expression = Expression("slow", "re", octets, pattern, flags, {method: 1})
        assert any(growth(expression, method, attack, SIZE) for attack in attacks.attacks(expression)), pattern


@pytest.mark.parametrize("place", sorted(PLACES))
def test_each_message_takes_linear_time(place: str) -> None:
    """A run of every other unit in each place, with some of what may stand before and behind it."""
    found = [long_messages.check(run, 16_000) for run in list(long_messages.runs([place], step=120))[::2]]
    assert [each for each in found if each] == []


@pytest.mark.parametrize("place", sorted(PLACES))
def test_each_large_message_takes_linear_time(place: str) -> None:
    """What copies or searches from the start each time shows only where there is much to copy."""
    found = [long_messages.check(run, 200_000) for run in list(long_messages.runs([place], step=120))[::29]]
    assert [each for each in found if each] == []
