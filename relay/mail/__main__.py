"""`python -m relay.mail FILE.eml`: what would be stored of a message, as JSON; `-` reads standard input."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from relay.mail import Limits, Unusable, parse
except ModuleNotFoundError as missing:
    if __name__ != "__main__":  # the program says it that imported this one
        raise
    from config import missing_package

    raise SystemExit(missing_package.refuse(missing, "python -m relay.mail")) from None

#: Characters of an attachment's Base64 that are shown unless `--full` is given.
_SHOWN = 76


def main(given: Sequence[str], program: str = "python -m relay.mail") -> int:
    """Exit code 0 for a message that can be taken, 1 for one that can't, 2 for a file that can't be read.

    `program`: how it is started.
    """
    arguments = _arguments(given, program)
    try:
        raw = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
    except OSError as error:
        print(f"{arguments.file}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        message = parse(raw, Limits(allow_utf8_local_parts=arguments.utf8_local_parts))
    except Unusable as unusable:
        print(json.dumps({"refused": unusable.fault.value, "detail": unusable.detail}, indent=2))
        return 1
    stored = dataclasses.asdict(message)
    for attachment in stored["attachments"]:
        content = attachment["content"]
        if not arguments.full and len(content) > _SHOWN:
            attachment["content"] = f"{content[:_SHOWN]}… ({len(content)} characters)"
    document = json.dumps(stored, indent=2, ensure_ascii=False)
    print("\n".join(map(_visible, document.split("\n"))))
    return 0


def _visible(line: str) -> str:
    """A line of JSON with the characters that a terminal acts upon in JSON's own form: DEL, C1, marks of direction."""
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in line)


def _arguments(given: Sequence[str], program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("file", metavar="FILE.eml", help="the message, as it came over SMTP; - is standard input")
    parser.add_argument("--full", action="store_true", help="show attachments to their last character")
    parser.add_argument("--utf8-local-parts", action="store_true", help="as SMTP_RELAY_ALLOW_UTF8_LOCAL_PARTS=true")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
