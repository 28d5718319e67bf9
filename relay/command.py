"""`opensend-relay COMMAND`: what an installed package is run by. Each command is the main function of one module.

A process that serves imports no more by this than by `python -m relay`: the memory of its master counts.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import sys

from relay.process import command_line

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

PROGRAM: Final = "opensend-relay"
USAGE: Final = """\
usage: opensend-relay COMMAND [ARGUMENT...]

Processes; each works until SIGTERM:
  serve                        the SMTP relay
  worker                       the delivery worker
  web                          the HTTP process: tracked links, events of SES

For operators:
  check [relay|worker|web]     test settings and all that they name;
                               exit 1 if it could not work, 2 for a wrong
                               setting
  health [relay|worker|web]    whether the process in this container serves;
                               exit 1 where it does not
  warm-cache [OPTION...]       fill Redis with API keys and suppressions
  preview EMAIL-ID             print the mail that would be sent for a row
  unclear [OPTION...]          list mails that may have been sent, decide
  replay QUEUE-URL             process events from a dead-letter queue
  parse FILE.eml               print what would be stored of a message

  --version, --help            (COMMAND --help has more)

Settings are environment variables: see docs/configuration.md.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, 2 for wrong arguments. `arguments`: None takes those of this process."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given:
        return _wrong("a command is missing")
    name, *rest = given
    if name in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0
    if name in ("--version", "version"):
        from relay import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    if name not in COMMANDS:
        return _wrong(f"unknown command: {name}")
    return COMMANDS[name](rest)


def _serve(arguments: Sequence[str]) -> int:
    from relay.__main__ import main as relay

    return relay(arguments, f"{PROGRAM} serve")


def _worker(arguments: Sequence[str]) -> int:
    from relay.delivery.__main__ import main as worker

    return worker(arguments, f"{PROGRAM} worker")


def _web(arguments: Sequence[str]) -> int:
    from relay.web.__main__ import main as web

    return web(arguments, f"{PROGRAM} web")


def _check(arguments: Sequence[str]) -> int:
    processes = {"relay": _serve, "worker": _worker, "web": _web}
    name, *more = arguments or ["relay"]
    if more or name not in processes:
        return _usage("check [relay|worker|web]", arguments)
    return processes[name](["--check"])


def _health(arguments: Sequence[str]) -> int:
    if len(arguments) > 1 or not {"relay", "worker", "web"}.issuperset(arguments):
        return _usage("health [relay|worker|web]", arguments)
    from relay.operator import health

    return health.main(arguments[0] if arguments else None)


def _warm_cache(arguments: Sequence[str]) -> int:
    program = f"{PROGRAM} warm-cache"

    def body() -> int:
        from relay.operator import warm_cache

        return warm_cache.main(arguments, program)

    return command_line.with_packages(program, body)


def _preview(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        return _usage("preview EMAIL-ID", arguments)
    return _worker(["--preview", *arguments])


def _unclear(arguments: Sequence[str]) -> int:
    if any(each in ("--help", "-h") for each in arguments):
        return _usage("unclear [--release EMAIL-ID | --fail EMAIL-ID]", arguments)
    return _worker(["--unclear", *arguments])


def _replay(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        return _usage("replay QUEUE-URL", arguments)
    return _web(["--replay", *arguments])


def _parse(arguments: Sequence[str]) -> int:
    program = f"{PROGRAM} parse"

    def body() -> int:
        from relay.mail.__main__ import main as parse

        return parse(arguments, program)

    return command_line.with_packages(program, body)


def _usage(form: str, arguments: Sequence[str]) -> int:
    """How a command is called: on standard output where that was asked for, else it is an error."""
    asked = list(arguments) in (["--help"], ["-h"])
    (sys.stdout if asked else sys.stderr).write(f"usage: {PROGRAM} {form}\n")
    return 0 if asked else 2


def _wrong(reason: str) -> int:
    sys.stderr.write(f"{PROGRAM}: {reason}\n\n{USAGE}")
    return 2


COMMANDS: Final[dict[str, Callable[[Sequence[str]], int]]] = {
    "serve": _serve,
    "worker": _worker,
    "web": _web,
    "check": _check,
    "health": _health,
    "warm-cache": _warm_cache,
    "preview": _preview,
    "unclear": _unclear,
    "replay": _replay,
    "parse": _parse,
}
