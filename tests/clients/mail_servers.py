"""Mail servers that take mail from their machine's users, queue it, and hand it to the relay as their smart host.

Each runs with a separate configuration, queue and log, beside whatever the machine has. They need root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from tests.clients.machine import lacking
from tests.clients.mail import Account, Mail

SENDER = "ann@example.com"


class MailServer:
    """One mail server with the relay as its smart host; `start` before all else."""

    name: ClassVar[str]
    program: ClassVar[str]
    #: Whom the queue belongs to.
    user: ClassVar[str]
    #: Whether what it writes to a sender has an address in From, without which the relay takes no mail.
    bounces_have_sender: ClassVar[bool] = True
    #: Whether it tries again after a temporary failure of AUTH; else it bounces the mail at once.
    logs_in_again: ClassVar[bool] = True

    def __init__(self, directory: Path) -> None:
        """`directory` must be open to the server's user all the way down to it."""
        self._directory = directory

    @classmethod
    def missing(cls) -> str:
        """What this machine lacks for it; empty if nothing."""
        return lacking(cls.name, cls.program, cls.user)

    def start(self, account: Account) -> None:
        """Configures it to send everything through the account, and starts it where it is a daemon."""
        raise NotImplementedError

    def submit(self, mail: Mail) -> None:
        """Hands a mail over as a machine's user does: recipients from its header, Bcc among them, to be taken out."""
        raise NotImplementedError

    def attempt(self) -> None:
        """Tries again now what is in the queue."""
        raise NotImplementedError

    def queue(self) -> str:
        """What is waiting, as the server lists it; empty if nothing."""
        raise NotImplementedError

    def said(self) -> str:
        """Its log; empty where it logs to syslog only."""
        return ""

    def stop(self) -> None:
        """Ends it where it is a daemon."""

    def _folder(self, name: str) -> Path:
        folder = self._directory / name
        folder.mkdir(exist_ok=True)
        shutil.chown(folder, self.user)
        return folder

    def _run(self, *arguments: str, standard_input: bytes = b"", check: bool = True) -> str:
        ended = subprocess.run(
            arguments,
            input=standard_input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MAIL_CONFIG": str(self._directory / "etc")},
            timeout=120,
            check=False,
        )
        output = ended.stdout.decode(errors="replace")
        if check and ended.returncode:
            raise AssertionError(f"{' '.join(arguments)}: {output}")
        return output


class Postfix(MailServer):
    """Postfix: up to 50 recipients a transaction, several transactions at the same time."""

    name = "Postfix"
    program = "postfix"
    user = "postfix"

    _SERVICES = """
pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
smtp unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""

    def start(self, account: Account) -> None:
        """See MailServer."""
        etc = self._directory / "etc"
        etc.mkdir()
        (self._directory / "queue").mkdir()
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": str(self._directory / "queue"),
            "data_directory": str(self._folder("data")),
            "maillog_file": str(self._log),
            "maillog_file_prefixes": str(self._directory),
            "myhostname": "client.example",
            "mydestination": "",
            "inet_interfaces": "loopback-only",
            "alias_maps": "",
            "alias_database": "",
            "smtp_host_lookup": "native",
            "smtp_tls_loglevel": "1",
            "minimal_backoff_time": "1s",
            "maximal_backoff_time": "2s",
            "queue_run_delay": "1s",
        }
        separated = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (etc / "master.cf").write_text(self._SERVICES)
        (etc / "main.cf").write_text(separated)  # postmap reads it
        (etc / "main.cf").write_text(separated + self._smart_host(account))
        self._run("postfix", "-c", str(etc), "start")

    def _smart_host(self, account: Account) -> str:
        """The lines of main.cf that make the account's host the smart host."""
        host = f"[{account.host}]:{account.port}"
        settings = {
            "relayhost": host,
            "smtp_sasl_auth_enable": "yes",
            "smtp_sasl_security_options": "noanonymous",
            "smtp_sasl_password_maps": f"inline:{{ {{{host} = {account.username}:{account.password}}} }}",
            "smtp_tls_security_level": "none" if account.security == "plain" else "secure",
            "smtp_tls_wrappermode": "yes" if account.security == "tls" else "no",
            "smtp_tls_CAfile": account.authority,
        }
        return "".join(f"{name} = {value}\n" for name, value in settings.items())

    @property
    def _log(self) -> Path:
        return self._directory / "maillog"

    def submit(self, mail: Mail) -> None:
        """See MailServer."""
        message = mail.composed().as_bytes().replace(b"\r\n", b"\n")
        postfix = Path(shutil.which("postfix") or "")
        self._run(str(postfix.with_name("sendmail")), "-t", "-oi", "-f", SENDER, standard_input=message)

    def attempt(self) -> None:
        """See MailServer."""
        self._run("postqueue", "-f")

    def queue(self) -> str:
        """See MailServer."""
        listed = self._run("postqueue", "-p")
        return "" if "queue is empty" in listed else listed

    def said(self) -> str:
        """See MailServer."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stop(self) -> None:
        """See MailServer."""
        self._run("postfix", "-c", str(self._directory / "etc"), "stop", check=False)


class Exim(MailServer):
    """Exim: up to 100 recipients a transaction; sends BDAT and pipelines where it may."""

    name = "Exim"
    program = "exim4"
    user = "Debian-exim"

    def start(self, account: Account) -> None:
        """See MailServer."""
        spool, log = self._folder("spool"), self._folder("log")
        router, transport, authenticator = self._smart_host(account)
        configuration = f"""
exim_path = {shutil.which(self.program)}
spool_directory = {spool}
log_file_path = {log}/%slog
log_selector = +smtp_confirmation
primary_hostname = client.example
domainlist local_domains =
never_users =

begin routers
{router}
begin transports
{transport}
begin retry
* * F,1h,1s

begin authenticators
{authenticator}"""
        self._configuration.write_text(configuration)

    def _smart_host(self, account: Account) -> tuple[str, str, str]:
        """The router, the transport and the authenticator that make the account's host the smart host."""
        tls = "hosts_avoid_tls = *" if account.security == "plain" else "hosts_require_tls = *"
        router = f"""smart_host:
  driver = manualroute
  transport = smart_host
  route_list = * {account.host} byname
  self = send
"""
        transport = f"""smart_host:
  driver = smtp
  protocol = {"smtps" if account.security == "tls" else "smtp"}
  port = {account.port}
  allow_localhost
  hosts_require_auth = *
  {tls}
  tls_verify_certificates = {account.authority}
  tls_verify_hosts = *
"""
        authenticator = f"""smart_host:
  driver = plaintext
  public_name = PLAIN
  client_send = ^{account.username}^{account.password}
"""
        return router, transport, authenticator

    @property
    def _configuration(self) -> Path:
        return self._directory / "exim.conf"

    def _exim(self, *arguments: str, standard_input: bytes = b"") -> str:
        return self._run(self.program, "-C", str(self._configuration), *arguments, standard_input=standard_input)

    def submit(self, mail: Mail) -> None:
        """See MailServer."""
        message = mail.composed().as_bytes().replace(b"\r\n", b"\n")
        self._exim("-odf", "-t", "-oi", "-f", SENDER, standard_input=message)

    def attempt(self) -> None:
        """See MailServer."""
        self._exim("-qff")

    def queue(self) -> str:
        """See MailServer."""
        return self._exim("-bp").strip()

    def said(self) -> str:
        """See MailServer."""
        return "".join(path.read_text(errors="replace") for path in sorted((self._directory / "log").iterdir()))


class Dma(MailServer):
    """The DragonFly Mail Agent: a connection and a transaction for each recipient."""

    name = "dma"
    program = "dma"
    user = "mail"
    bounces_have_sender = False
    logs_in_again = False

    #: It reads /etc/dma and nothing else, so it gets a separate one in a mount namespace.
    _IN_NAMESPACE = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/dma && exec "$@"')

    @classmethod
    def missing(cls) -> str:
        """See MailServer."""
        return super().missing() or ("" if shutil.which("unshare") else "unshare is not installed")

    def start(self, account: Account) -> None:
        """See MailServer."""
        etc, spool = self._folder("etc"), self._folder("spool")
        settings = [
            f"SMARTHOST {account.host}",
            f"PORT {account.port}",
            f"SPOOLDIR {spool}",
            "AUTHPATH /etc/dma/auth.conf",
            "MAILNAME client.example",
            *{
                "plain": ["INSECURE"],
                "starttls": ["SECURETRANSFER", "STARTTLS"],
                "tls": ["SECURETRANSFER"],
            }[account.security],
        ]
        (etc / "dma.conf").write_text("".join(f"{setting}\n" for setting in settings))
        (etc / "auth.conf").write_text(f"{account.username}|{account.host}:{account.password}\n")

    def _dma(self, *arguments: str, standard_input: bytes = b"") -> None:
        etc = str(self._directory / "etc")
        self._run(*self._IN_NAMESPACE, etc, self.program, *arguments, standard_input=standard_input)

    def submit(self, mail: Mail) -> None:
        """See MailServer; but told the recipients, since it overlooks those in the folded lines of a long field."""
        composed = mail.composed()
        del composed["Bcc"]
        message = composed.as_bytes().replace(b"\r\n", b"\n")
        self._dma("-i", "-f", SENDER, *mail.envelope, standard_input=message)

    def attempt(self) -> None:
        """See MailServer. The processes that hold the mails look for this every 30 s."""
        self._dma("-q")

    def queue(self) -> str:
        """See MailServer. Its own list leaves out what is being delivered."""
        entries = []
        for path in (self._directory / "spool").glob("Q*"):
            with contextlib.suppress(FileNotFoundError):  # delivered meanwhile
                entries.append(path.read_text())
        return "\n".join(entries)


MAIL_SERVERS: tuple[type[MailServer], ...] = (Dma, Exim, Postfix)
