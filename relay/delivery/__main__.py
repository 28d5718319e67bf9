"""`python -m relay.delivery`: deliver; `--check`: could mail leave? `--preview`: what would? `--unclear`: what did?"""

# ruff: noqa: PLC0415 - the master process imports next to nothing (relay.process.master), the rest is its children's

from __future__ import annotations

import sys

from relay.process import command_line

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
usage: {program}
         [--check | --preview EMAIL-ID | --unclear … | --version | --help]

The delivery worker: sends queued mail. Without an argument it works until SIGTERM.

  --check    test settings, database, queue and provider;
             exit 1 if mail could not be sent, 2 for a wrong setting
  --preview  print the mail that would be sent for a row, to a file or a
             pipe; nothing is sent or changed
  --unclear  list mails that are older than 24 hours and may have been sent
             before a crash. They wait for a decision:
             --unclear --release EMAIL-ID sends the mail,
             --unclear --fail EMAIL-ID marks it as failed
  --version  print the version
  --help     print this

Settings are environment variables: see docs/configuration.md.
"""


def main(arguments: Sequence[str], program: str = "python -m relay.delivery") -> int:
    """The exit status: 0 fine, 1 failed, 2 wrong arguments or settings. `program`: how it is started."""
    if len(arguments) == 2 and arguments[0] == "--preview":
        return command_line.with_packages(program, lambda: _preview(arguments[1]))
    if arguments and arguments[0] == "--unclear":
        return command_line.with_packages(program, lambda: _unclear(arguments[1:]))
    return command_line.run(program, USAGE.replace("{program}", program), arguments, serve=_serve, check=_check)


def _preview(email_id: str) -> int:
    from relay.operator import delivery_preview

    return delivery_preview.main(email_id)


def _unclear(arguments: Sequence[str]) -> int:
    from relay.operator import held_mails

    return held_mails.main(arguments)


def _serve() -> int:
    from relay.process import delivery_children, master

    return master.run(delivery_children.prepare, delivery_children.load, delivery_children.serve)


def _check() -> int:
    from relay.operator import delivery_check

    return delivery_check.main()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
