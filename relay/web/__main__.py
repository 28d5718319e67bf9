"""`python -m relay.web`: serve; `--check`: could it? `--replay`: take up what a dead-letter queue has."""

# ruff: noqa: PLC0415 - the master process imports next to nothing (relay.process.master), the rest is its children's

from __future__ import annotations

import sys

from relay.process import command_line

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
usage: {program} [--check | --replay QUEUE-URL | --version | --help]

The HTTP process: tracked links, and events of Amazon SES about sent mail.
Without an argument it serves until SIGTERM.

  --check    test settings, certificate, database and Redis;
             exit 1 if it could not serve, 2 for a wrong setting
  --replay   process messages of SNS from a dead-letter queue in SQS;
             messages that are refused stay in the queue
  --version  print the version
  --help     print this

Settings are environment variables: see docs/configuration.md.
"""


def main(arguments: Sequence[str], program: str = "python -m relay.web") -> int:
    """The exit status: 0 fine, 1 failed, 2 wrong arguments or settings. `program`: how it is started."""
    if len(arguments) == 2 and arguments[0] == "--replay":
        return command_line.with_packages(program, lambda: _replay(arguments[1]))
    return command_line.run(program, USAGE.replace("{program}", program), arguments, serve=_serve, check=_check)


def _replay(queue_url: str) -> int:
    from relay.operator import notification_replay

    return notification_replay.main(queue_url)


def _serve() -> int:
    from relay.process import master, web_children

    return master.run(web_children.prepare, web_children.load, web_children.serve)


def _check() -> int:
    from relay.server import openssl_policy

    openssl_policy.restrict_groups()

    from relay.operator import web_check

    return web_check.main()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
