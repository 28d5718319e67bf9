"""`python -m relay`: serve; `--check`: could mail be accepted?"""

# ruff: noqa: PLC0415 - the master process imports next to nothing (relay.process.master), the rest is its children's

from __future__ import annotations

import sys

from relay.process import command_line

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
usage: {program} [--check | --version | --help]

The SMTP server of OpenSend. Without an argument it serves until SIGTERM.

  --check    test settings, certificate, database, Redis and queue;
             exit 1 if mail could not be accepted, 2 for a wrong setting
  --version  print the version
  --help     print this

Settings are environment variables: see docs/configuration.md.
"""


def main(arguments: Sequence[str], program: str = "python -m relay") -> int:
    """The exit status: 0 fine, 1 failed, 2 wrong arguments or settings. `program`: how it is started."""
    return command_line.run(program, USAGE.replace("{program}", program), arguments, serve=_serve, check=_check)


def _serve() -> int:
    from relay.process import children, master

    return master.run(children.prepare, children.load, children.serve)


def _check() -> int:
    from relay.server import openssl_policy

    openssl_policy.restrict_groups()

    from relay.operator import check

    return check.main()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
