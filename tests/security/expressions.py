"""Which regular expressions a client's octets reach, found by a hook on `re` and `regex` rather than listed.

    python -m tests.security.expressions

puts a recorder in the place of both modules' compile functions, before anything of the relay is imported, gives the
relay what clients send (the corpus, the seeds of the fuzz targets, long values in every place of a message), and prints
one JSON object for each expression that ran on any of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ClassVar

import regex

#: Methods that look for a match, and the position of `pos` among their arguments.
METHODS = ("match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer")
_TAKES_REPLACEMENT = ("sub", "subn")
_COMPILED = (re.Pattern, type(regex.compile("")))


class Recorded:
    """Stands for a compiled expression: does what it does, and notes what it is given while the recorder listens."""

    listening = False
    all: ClassVar[list[Recorded]] = []

    def __init__(self, compiled: Any, engine: str, module: str) -> None:
        self.compiled = compiled
        self.engine = engine
        self.module = module
        self.name = ""
        #: Method → characters of the longest text.
        self.longest: dict[str, int] = {}
        Recorded.all.append(self)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.compiled, name)
        if name not in METHODS or not Recorded.listening:
            return found

        def noted(*arguments: Any, **named: Any) -> Any:
            text = arguments[1] if name in _TAKES_REPLACEMENT else arguments[0]
            size = len(text)
            if name not in (*_TAKES_REPLACEMENT, "split"):
                start, end = (*arguments[1:3], 0, size)[:2] if len(arguments) < 3 else arguments[1:3]
                size = max(0, min(end if len(arguments) > 2 else size, size) - start)
            self.longest[name] = max(self.longest.get(name, 0), size)
            return found(*arguments, **named)

        return noted


def install() -> None:
    """Puts the recorder in the place of the functions of `re` and `regex`, and of what was compiled already."""
    for engine in (re, regex):
        _replace_functions(engine)
    for module in list(sys.modules.values()):
        if module.__name__.split(".")[0] in ("re", "regex", "tests", "__main__"):
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, _COMPILED):
                setattr(module, name, _recorded(value, module.__name__))


def _recorded(compiled: Any, module: str) -> Recorded:
    return Recorded(compiled, "re" if isinstance(compiled, re.Pattern) else "regex", module)


def _replace_functions(engine: ModuleType) -> None:
    compile_ = engine.compile
    known: dict[Any, Recorded] = {}

    def compiled(pattern: Any, flags: Any = 0, **named: Any) -> Any:
        module = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(pattern, Recorded):
            return pattern
        if isinstance(pattern, _COMPILED):
            return _recorded(pattern, module)
        key = (pattern, flags, module)
        if key not in known:
            known[key] = _recorded(compile_(pattern, flags, **named), module)
        return known[key]

    def function(name: str) -> Callable[..., Any]:
        def called(pattern: Any, *arguments: Any, flags: Any = 0, **named: Any) -> Any:
            if not isinstance(pattern, Recorded):
                key = (pattern, flags, name)
                if key not in known:
                    known[key] = _recorded(compile_(pattern, flags), sys._getframe(1).f_globals.get("__name__", ""))
                pattern = known[key]
            return getattr(pattern, name)(*arguments, **named)

        return called

    for name in METHODS:
        setattr(engine, name, function(name))
    engine.compile = compiled  # type: ignore[attr-defined]


def names() -> Iterator[tuple[Recorded, str]]:
    """The names by which modules know what they compiled."""
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if isinstance(value, Recorded):
                yield value, f"{module.__name__}.{name}"
            elif isinstance(value, type) and value.__module__ == module.__name__:
                for inner, each in list(vars(value).items()):
                    if isinstance(each, Recorded):
                        yield each, f"{module.__name__}.{name}.{inner}"


def listen() -> None:
    """Gives the relay what clients send."""
    from relay.mail import Unusable, parse
    from relay.mail.message import Limits
    from tests.fuzz import catalogue
    from tests.security import long_messages
    from tests.support.mail_corpus import messages

    targets = [catalogue.load(name) for name in catalogue.NAMES]
    Recorded.listening = True
    for target in targets:
        for octets in (*target.seeds(), *catalogue.kept(target.name)):
            # Whether it is handled as it must be is for the fuzz tests to say.
            with contextlib.suppress(Exception):
                target.check(octets)
    for raw in (*(path.read_bytes() for path in messages()), *long_messages.for_recording()):
        with contextlib.suppress(Unusable):
            parse(raw, Limits(allow_utf8_local_parts=True))
    Recorded.listening = False


def main() -> None:
    """Prints what was reached."""
    install()
    listen()
    by_name = {id(recorded): name for recorded, name in names() if recorded.module in name}
    for recorded in Recorded.all:
        if recorded.longest and not recorded.module.startswith(("tests", "hypothesis", "__main__")):
            pattern = recorded.compiled.pattern
            entry = {
                "name": by_name.get(id(recorded), recorded.module),
                "engine": recorded.engine,
                "octets": isinstance(pattern, bytes),
                "pattern": pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern,
                "flags": int(recorded.compiled.flags),
                "longest": recorded.longest,
            }
            print(json.dumps(entry))


if __name__ == "__main__":
    main()
