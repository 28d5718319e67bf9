"""Servers that the provider `smtp` hands mails to: Postfix and Exim, each with a separate configuration and queue.

They need root, and listen on 127.0.0.1. All take mail for `@x.example` and refuse the same:

    bad…        unknown, for good            later…      put off, always
    grey…       put off, until `open_up`     drop…       refused for good, and the connection closed
    nodata…     refused with DATA            Subject: refused, Subject: postponed     behind the end of data

By Exim alone where Postfix has no word for it: `grey`, `drop`, `nodata`, and what a subject refuses.
"""

from __future__ import annotations

import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import ClassVar

from scripts.services import free_port
from tests.clients.machine import lacking
from tests.support.certificates import write_pair

#: Recipients that exist: p0 … p59.
PEOPLE = 60
USER, PASSWORD = "ann", "secret"
#: Fields that a server puts above a mail that it delivers.
_TRACE = (b"return-path:", b"received:", b"delivered-to:", b"x-original-to:", b"envelope-to:", b"delivery-date:")
#: What no server takes longer for, seconds.
_PATIENCE = 60.0


class RealHost:
    """A server of another make. `limited_port` takes 1 MB at most and has LOGIN alone; `tls_port`: from the start."""

    name: ClassVar[str]
    program: ClassVar[str]
    #: Whom its process belongs to, and mails that it delivers.
    user: ClassVar[str]
    #: Whether it has TLS from the start, a log-in, and refusals by text.
    complete: ClassVar[bool] = True

    @classmethod
    def missing(cls) -> str:
        """What this machine lacks for it; empty if nothing."""
        return lacking(cls.name, cls.program, cls.user)

    def __init__(self) -> None:
        # Not in pytest's own folder, which only its owner may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="smart-host-"))
        self._folder.chmod(0o755)
        self.port = free_port(count=3)
        self.limited_port, self.tls_port = self.port + 1, self.port + 2
        self.certificate, self._key = write_pair(self._folder / "tls")
        (self._folder / "mail").mkdir()

    def start(self) -> None:
        """Returns when it listens."""
        self._start()
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < until, f"{self.name} does not listen: {self.log()}"
                time.sleep(0.1)

    def stop(self) -> None:
        """Ends it, and leaves nothing."""
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def environment(self, port: int = 0) -> dict[str, str]:
        """The settings of a worker that hands its mails to a port of it."""
        implicit = port == self.tls_port
        return {
            "SMTP_RELAY_PROVIDER": "smtp",
            "SMTP_RELAY_SMARTHOST_HOST": "localhost",
            "SMTP_RELAY_SMARTHOST_PORT": str(port or self.port),
            "SMTP_RELAY_SMARTHOST_TLS": "implicit" if implicit else "starttls",
            "SMTP_RELAY_SMARTHOST_CA_PATH": self.certificate,
        }

    def open_up(self) -> None:
        """From now on it takes mail for those that it had put off. Of `complete` ones alone."""
        raise NotImplementedError

    def has(self, subject: str) -> dict[str, list[bytes]]:
        """Who has mails with this text in the subject → those, as they came: with CRLF, without what it put above."""
        found: dict[str, list[bytes]] = {}
        for path in (self._folder / "mail").rglob("new/*"):
            octets = _as_it_came(path.read_bytes())
            if subject.encode() in octets.partition(b"\r\n\r\n")[0]:
                found.setdefault(path.parts[-3], []).append(octets)
        return found

    def wait_for(self, subject: str, count: int) -> dict[str, list[bytes]]:
        """`has`, once it has delivered so many."""
        until = time.monotonic() + _PATIENCE
        while True:
            found = self.has(subject)
            if sum(map(len, found.values())) >= count:
                return found
            assert time.monotonic() < until, (found.keys(), self.log())
            time.sleep(0.2)

    def log(self) -> str:
        """All that it wrote."""
        logs = [self._folder / "maillog", *(self._folder / "log").glob("*")]
        return "".join(path.read_text(errors="replace") for path in logs if path.exists())

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError


def _as_it_came(stored: bytes) -> bytes:
    lines = stored.split(b"\n")
    first = 0
    while lines[first].lower().startswith((*_TRACE, b" ", b"\t")):
        first += 1
    return b"\r\n".join(lines[first:])


class PostfixHost(RealHost):
    """Postfix: five recipients at a time; no log-in, for which it needs another program."""

    name = "Postfix"
    program = "postfix"
    user = "postfix"
    complete = False

    _SERVICES = """
127.0.0.1:{port} inet n - n - - smtpd
127.0.0.1:{limited} inet n - n - - smtpd
    -o message_size_limit=1000000
127.0.0.1:{tls} inet n - n - - smtpd
    -o smtpd_tls_wrappermode=yes
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
proxymap unix - - n - - proxymap
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
postlog unix-dgram n - n - 1 postlogd
anvil unix - - n - 1 anvil
"""

    def _start(self) -> None:
        self._etc = self._folder / "etc"
        self._etc.mkdir()
        for name in ("queue", "data"):
            (self._folder / name).mkdir()
        shutil.chown(self._folder / "data", "postfix")
        user = pwd.getpwnam("nobody")
        shutil.chown(self._folder / "mail", user.pw_uid, user.pw_gid)
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": self._folder / "queue",
            "data_directory": self._folder / "data",
            "maillog_file": self._folder / "maillog",
            "maillog_file_prefixes": self._folder,
            "myhostname": "localhost",
            "mydestination": "",
            "inet_interfaces": "127.0.0.1",
            "alias_maps": "",
            "alias_database": "",
            "smtpd_tls_cert_file": self.certificate,
            "smtpd_tls_key_file": self._key,
            "smtpd_tls_security_level": "encrypt",
            "smtpd_recipient_limit": 5,
            "smtpd_client_connection_count_limit": 3,
            "smtpd_client_event_limit_exceptions": "",
            "message_size_limit": 41943040,
            "virtual_mailbox_limit": 0,
            "smtpd_relay_restrictions": "permit_mynetworks,reject",
            "smtpd_recipient_restrictions": f"check_recipient_access regexp:{self._etc}/access",
            "virtual_mailbox_domains": "x.example xn--bcher-kva.example",
            "virtual_mailbox_base": self._folder / "mail",
            "virtual_mailbox_maps": f"texthash:{self._etc}/people",
            "virtual_uid_maps": f"static:{user.pw_uid}",
            "virtual_gid_maps": f"static:{user.pw_gid}",
        }
        (self._etc / "access").write_text("/^later@/ 450 4.2.1 put off\n")
        people = ["later", *(f"p{number}" for number in range(PEOPLE))]
        addresses = [f"{each}@x.example {each}/\n" for each in people] + ["p0@xn--bcher-kva.example p0/\n"]
        (self._etc / "people").write_text("".join(addresses))
        (self._etc / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        services = self._SERVICES.format(port=self.port, limited=self.limited_port, tls=self.tls_port)
        (self._etc / "master.cf").write_text(services)
        self._postfix("start")

    def _postfix(self, word: str) -> None:
        command = ["postfix", "-c", str(self._etc), word]
        subprocess.run(command, check=word != "stop", capture_output=True, timeout=_PATIENCE)

    def _stop(self) -> None:
        self._postfix("stop")


class EximHost(RealHost):
    """Exim: five recipients at a time, three connections of five mails each; PLAIN and LOGIN; CHUNKING is offered."""

    name = "Exim"
    program = "exim4"
    user = "Debian-exim"

    _CONFIGURATION = """
exim_path = {program}
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
primary_hostname = localhost
daemon_smtp_ports = {port} : {limited} : {tls}
tls_on_connect_ports = {tls}
local_interfaces = 127.0.0.1
tls_advertise_hosts = *
tls_certificate = {certificate}
tls_privatekey = {key}
auth_advertise_hosts = *
chunking_advertise_hosts = *
pipelining_advertise_hosts = *
recipients_max = 5
recipients_max_reject = false
smtp_accept_max = 3
smtp_accept_max_per_connection = 5
message_size_limit = ${{if ={{$received_port}}{{{limited}}}{{1M}}{{40M}}}}
never_users =
acl_smtp_rcpt = rcpt
acl_smtp_predata = predata
acl_smtp_data = data
begin acl
rcpt:
  deny !authenticated = *
  deny local_parts = ^bad
       message = unknown user
  drop local_parts = ^drop
       message = not here
  defer local_parts = ^later
  defer local_parts = ^grey
        condition = ${{if exists{{{folder}/open}}{{no}}{{yes}}}}
        message = greylisted, try again
  accept
predata:
  deny condition = ${{if match{{$recipients}}{{nodata}}}}
       message = no data for these
  accept
data:
  deny condition = ${{if match{{$h_subject:}}{{refused}}}}
       message = the content is refused
  defer condition = ${{if match{{$h_subject:}}{{postponed}}}}
        condition = ${{if exists{{{folder}/open}}{{no}}{{yes}}}}
        message = not this content now
  accept
begin routers
all:
  driver = accept
  transport = file
begin transports
file:
  driver = appendfile
  user = {user}
  directory = {folder}/mail/${{lookup{{$local_part}}lsearch,ret=key{{{folder}/people}}}}
  create_directory
  maildir_format
begin retry
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_advertise_condition = ${{if !={{$received_port}}{{{limited}}}}}
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{name}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = User : Password
  server_condition = ${{if and{{{{eq{{$auth1}}{{{name}}}}}{{eq{{$auth2}}{{{password}}}}}}}}}
  server_set_id = $auth1
"""

    def environment(self, port: int = 0) -> dict[str, str]:
        """See RealHost."""
        return super().environment(port) | {
            "SMTP_RELAY_SMARTHOST_USER": USER,
            "SMTP_RELAY_SMARTHOST_PASSWORD": PASSWORD,
        }

    def _start(self) -> None:
        for name in ("spool", "log", "mail"):
            (self._folder / name).mkdir(exist_ok=True)
            shutil.chown(self._folder / name, self.user)
        shutil.chown(self._key, self.user)
        # A name of a folder is not taken from an address as it came.
        people = ["grey", *(f"p{number}" for number in range(PEOPLE))]
        (self._folder / "people").write_text("".join(f"{each}:\n" for each in people))
        configuration = self._folder / "exim.conf"
        configuration.write_text(
            self._CONFIGURATION.format(
                program=shutil.which(self.program),
                folder=self._folder,
                port=self.port,
                limited=self.limited_port,
                tls=self.tls_port,
                certificate=self.certificate,
                key=self._key,
                user=self.user,
                name=USER,
                password=PASSWORD,
            )
        )
        with (self._folder / "output").open("wb") as output:
            # It says with each delivery that it has given up its rights because of -C.
            self._process = subprocess.Popen(
                [self.program, "-C", str(configuration), "-bdf", "-odi"], stdout=output, stderr=output
            )

    def open_up(self) -> None:
        """See RealHost."""
        (self._folder / "open").touch()

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait(_PATIENCE)


REAL_HOSTS: tuple[type[RealHost], ...] = (EximHost, PostfixHost)
