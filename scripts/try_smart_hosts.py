"""`./scripts/try_smart_hosts`: the delivery worker with Exim, Postfix and a relay of ours as its smart host."""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/try_smart_hosts instead.")

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USAGE = """\
usage: ./scripts/try_smart_hosts [PYTEST ARGUMENT...]

Starts the delivery worker with a real Postgres server, and with SMTP_RELAY_PROVIDER=smtp, and hands mails
to each of these that is installed; what arrives is compared with the row, octet by octet:

  Exim      with STARTTLS and with TLS from the start, AUTH PLAIN and LOGIN, limits of size, of recipients
            and of connections, greylisting, refusals of recipients, of DATA and behind the end of data
  Postfix   the same, as far as it can do it by itself
  relay     this project's own, as another OpenSend's

Exim and Postfix run as root only, beside the machine's own, if there is one, with a configuration and a queue in
a temporary folder. What is not installed is named at the end. A package that is only unpacked is enough:

  apt-get download exim4-daemon-light && dpkg -x exim4-daemon-light_*.deb exim
  adduser --system --group --no-create-home Debian-exim
  PATH=$PWD/exim/usr/sbin:$PATH ./scripts/try_smart_hosts

Arguments go to pytest:

  ./scripts/try_smart_hosts -k "Exim and fifty"
"""


def main(arguments: list[str]) -> int:
    """The exit status: pytest's, 0 if all is well."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    os.chdir(ROOT)
    file = "tests/clients/try_smart_hosts.py"
    return subprocess.run((sys.executable, "-m", "pytest", "-q", "-rs", file, *arguments), check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
