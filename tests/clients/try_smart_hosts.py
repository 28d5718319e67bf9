"""Postfix and Exim as the smart host of the provider `smtp`: with TLS and AUTH where the server can do it by itself.

Not collected by default, since it starts other programs' daemons and needs root; run it by its path. What is not
installed is skipped. Each server has a configuration and a queue in a temporary folder, and listens on 127.0.0.1.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from relay.delivery.content import Held, Spool
from relay.delivery.outcome import Failed, Outcome, Sent, Verdict
from relay.delivery.provider import Handover
from relay.delivery.smart_host import SmartHost
from relay.delivery.smtp_provider import SmtpProvider
from scripts.services import free_port
from tests.support.certificates import write_pair

POSTFIX_SERVICES = """
{port} inet n - n - - smtpd
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
EXIM = """
exim_path = {program}
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
primary_hostname = localhost
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
tls_advertise_hosts = *
tls_certificate = {certificate}
tls_privatekey = {key}
auth_advertise_hosts = *
recipients_max = 5
recipients_max_reject = false
message_size_limit = 40M
pipelining_advertise_hosts = *
never_users =
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  deny !authenticated = *
  deny local_parts = bad
       message = unknown user
  defer local_parts = later
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
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{ann}}}}{{eq{{$auth3}}{{secret}}}}}}{{yes}}{{no}}}}
  server_set_id = $auth2
"""


class Host:
    """A server that takes mail for `@x.example`; bad@ is unknown, and later@ is put off."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="smart-host-"))
        self.folder.chmod(0o755)
        self.port = free_port()
        self.certificate, self.key = write_pair(self.folder / "tls")
        self.settings: dict[str, Any] = {"smarthost_tls": "starttls", "smarthost_ca_path": self.certificate}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self._postfix if self.name == "postfix" else self._exim)()
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("it does not listen")

    def _postfix(self) -> None:
        etc = self.folder / "etc"
        etc.mkdir()
        for name in ("queue", "data", "mail"):
            (self.folder / name).mkdir()
        shutil.chown(self.folder / "data", "postfix")
        user = pwd.getpwnam("nobody")
        shutil.chown(self.folder / "mail", user.pw_uid, user.pw_gid)
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": self.folder / "queue",
            "data_directory": self.folder / "data",
            "maillog_file": self.folder / "maillog",
            "maillog_file_prefixes": self.folder,
            "myhostname": "localhost",
            "mydestination": "",
            "inet_interfaces": "127.0.0.1",
            "alias_maps": "",
            "alias_database": "",
            "smtpd_tls_cert_file": self.certificate,
            "smtpd_tls_key_file": self.key,
            "smtpd_tls_security_level": "encrypt",
            "smtpd_recipient_limit": 5,
            "message_size_limit": 41943040,
            "virtual_mailbox_limit": 0,
            "smtpd_relay_restrictions": "permit_mynetworks,reject",
            "smtpd_recipient_restrictions": f"check_recipient_access texthash:{etc}/access",
            "virtual_mailbox_domains": "x.example",
            "virtual_mailbox_base": self.folder / "mail",
            "virtual_mailbox_maps": f"texthash:{etc}/people",
            "virtual_uid_maps": f"static:{user.pw_uid}",
            "virtual_gid_maps": f"static:{user.pw_gid}",
        }
        people = ["later", *(f"p{number}" for number in range(20))]
        (etc / "access").write_text("later@x.example 450 4.2.1 later\n")
        (etc / "people").write_text("".join(f"{each}@x.example {each}/\n" for each in people))
        (etc / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        (etc / "master.cf").write_text(POSTFIX_SERVICES.format(port=f"127.0.0.1:{self.port}"))
        subprocess.run(["postfix", "-c", str(etc), "start"], check=True, capture_output=True, timeout=60)

    def _exim(self) -> None:
        for name in ("spool", "log", "mail"):
            (self.folder / name).mkdir()
            shutil.chown(self.folder / name, "Debian-exim")
        shutil.chown(self.key, "Debian-exim")
        # A name of a folder is not taken from an address as it came.
        (self.folder / "people").write_text("".join(f"p{number}:\n" for number in range(20)))
        configuration = self.folder / "exim.conf"
        program = shutil.which("exim4")
        configuration.write_text(
            EXIM.format(
                program=program,
                folder=self.folder,
                port=self.port,
                certificate=self.certificate,
                key=self.key,
                user="Debian-exim",
            )
        )
        self.settings |= {"smarthost_user": "ann", "smarthost_password": "secret"}
        self.process = subprocess.Popen([str(program), "-C", str(configuration), "-bdf", "-odi"])

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
        else:
            subprocess.run(
                ["postfix", "-c", str(self.folder / "etc"), "stop"], check=False, capture_output=True, timeout=60
            )
        shutil.rmtree(self.folder, ignore_errors=True)

    def mails(self, subject: str, count: int) -> dict[str, bytes]:
        """Who has the mail of this subject → the mail; waits for so many."""
        until = time.monotonic() + 60
        while True:
            found = {
                path.parts[-3]: octets
                for path in (self.folder / "mail").rglob("new/*")
                if f"Subject: {subject}\n".encode() in (octets := path.read_bytes())
            }
            if len(found) >= count:
                return found
            assert time.monotonic() < until, (found.keys(), self.log())
            time.sleep(0.2)

    def log(self) -> str:
        logs = [self.folder / "maillog", *(self.folder / "log").glob("*")]
        return "".join(path.read_text(errors="replace") for path in logs if path.exists())


@pytest.fixture(scope="module", params=["postfix", "exim4"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    if shutil.which(request.param) is None or os.geteuid() != 0:
        pytest.skip(f"{request.param} is not installed, or this is not root")
    host = Host(request.param)
    try:
        host.start()
        yield host
    finally:
        host.stop()


@pytest.fixture
def send(host: Host) -> Iterator[Callable[..., Outcome]]:
    settings = Settings(
        database_url="postgres://",
        smarthost_host="localhost",
        smarthost_port=host.port,
        hostname="client.example",
        **host.settings,
    )
    provider = SmtpProvider(SmartHost(settings), connections=2)

    def send(content: Any, *to: str) -> Outcome:
        return provider.send(
            Handover(
                email_id=str(uuid.uuid4()),
                sender="ann@example.com",
                to=to,
                cc=(),
                bcc=(),
                content=Held(content) if isinstance(content, bytes) else content,
                region="smtp",
                configuration_set=None,
            )
        )

    yield send
    provider.close()


def mail(subject: str, body: bytes = b"Hello\r\n") -> bytes:
    return b"From: ann@example.com\r\nTo: p1@x.example\r\nSubject: %s\r\n\r\n%s" % (subject.encode(), body)


def test_small_mails_on_one_connection(host: Host, send: Callable[..., Outcome]) -> None:
    subjects = [uuid.uuid4().hex for _ in range(5)]
    for subject in subjects:
        outcome = send(mail(subject, b".\r\n..\r\n.x\r\nend\r\n"), "p1@x.example")
        print(host.name, outcome)
        assert isinstance(outcome, Sent)
        assert outcome.message_id in host.log()
    for subject in subjects:
        (octets,) = host.mails(subject, 1).values()
        assert octets.endswith(b"\n\n.\n..\n.x\nend\n")


def test_recipients_that_are_refused(host: Host, send: Callable[..., Outcome]) -> None:
    subject = uuid.uuid4().hex
    outcome = send(mail(subject), "p1@x.example", "bad@x.example", "later@x.example", "p2@x.example")
    print(host.name, outcome)
    assert isinstance(outcome, Sent)
    assert [(each.address, each.passing) for each in outcome.refused] == [
        ("bad@x.example", False),
        ("later@x.example", True),
    ]
    assert set(host.mails(subject, 2)) == {"p1", "p2"}
    refused = send(mail(subject), "bad@x.example")
    print(host.name, refused)
    assert isinstance(refused, Failed)
    assert refused.verdict is Verdict.PERMANENT
    again = send(mail(subject), "later@x.example")
    print(host.name, again)
    assert isinstance(again, Failed)
    assert again.verdict in (Verdict.PASSING, Verdict.EITHER)


def test_more_recipients_than_it_takes_at_once(host: Host, send: Callable[..., Outcome]) -> None:
    subject = uuid.uuid4().hex
    outcome = send(mail(subject), *(f"p{number}@x.example" for number in range(12)))
    print(host.name, outcome)
    assert isinstance(outcome, Sent)
    assert outcome.refused == ()
    assert len(host.mails(subject, 12)) == 12


def test_a_large_mail(host: Host, send: Callable[..., Outcome], tmp_path: Path) -> None:
    subject = uuid.uuid4().hex
    with Spool(str(tmp_path)) as spool:
        spool.write(mail(subject))
        for _ in range(500):
            spool.write((b"x" * 76 + b"\r\n") * 256)
        outcome = send(spool.since(0), "p3@x.example")
        print(host.name, outcome, spool.size)
    assert isinstance(outcome, Sent)
    assert len(host.mails(subject, 1)["p3"]) > 9_000_000
