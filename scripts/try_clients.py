"""`./scripts/try_clients`: every mail client and mail server of this machine against the relay, and a table of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USAGE = """\
usage: ./scripts/try_clients [PYTEST ARGUMENT...]

Starts the relay with real Postgres and Valkey servers, sends it mail with each of these that is
installed, without TLS, with STARTTLS, and with TLS from the start, and prints what came of it:

  libraries     smtplib, Django, nodemailer, PHPMailer, Net::SMTP, Ruby mail
  programs      swaks, curl, msmtp, s-nail
  mail servers  dma, Exim, Postfix, as root only: each runs beside the machine's own, if there is one,
                with a configuration and a queue in a temporary folder

nodemailer is found where NODE_PATH says, PHPMailer's autoload.php where PHPMAILER says, if they
are not where their packages put them. Arguments go to pytest:

  ./scripts/try_clients -k "Exim and many"
"""


def main(arguments: list[str]) -> int:
    """The exit status: pytest's, 0 if all is well."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    os.chdir(ROOT)
    files = ("tests/clients/test_clients.py", "tests/clients/try_mail_servers.py")
    command = (sys.executable, "-m", "pytest", "-q", "-p", "tests.clients.table", "--every-client", *files, *arguments)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
