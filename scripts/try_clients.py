"""`./scripts/try_clients`: mail clients, mail servers and recipes that this machine can run, and a table of them."""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/try_clients instead.")

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

  recipes       the code blocks of docs/clients.md, with a right key, a wrong key, a certificate of an
                unknown authority, one of another name, and a relay without TLS

What is not installed is named at the end. Libraries are found where Debian's packages put them, or by
these variables:

  NODE_PATH                   the folder that holds nodemailer
  PHPMAILER, SYMFONY_MAILER   the autoload.php of PHPMailer, of Symfony Mailer
  WORDPRESS                   the folder of a WordPress that is installed, with its database
  CLASSPATH                   the jars of Spring's mail support, JavaMail and Jakarta Mail
  GOPATH                      go-mail and gopkg.in/mail.v2

Arguments go to pytest:

  ./scripts/try_clients -k recipe
  ./scripts/try_clients -k "Exim and many"
"""


def main(arguments: list[str]) -> int:
    """The exit status: pytest's, 0 if all is well."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    os.chdir(ROOT)
    names = ("test_clients.py", "try_recipes.py", "try_mail_servers.py")
    files = [f"tests/clients/{name}" for name in names]
    command = (sys.executable, "-m", "pytest", "-q", "-p", "tests.clients.table", "--every-client", *files, *arguments)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
