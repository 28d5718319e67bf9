"""Mail clients that hand a mail straight to the relay and tell their user at once what came of it.

Each is driven by the means that it offers to its users: its own way to name a Bcc, to attach a file, to give a key.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import smtplib
import ssl
import subprocess
import sys
from dataclasses import dataclass
from email.header import Header
from pathlib import Path
from typing import Protocol

from tests.clients.mail import Account, Answer, Mail, Person, Security

HERE = Path(__file__).resolve().parent
EVERY_SECURITY: tuple[Security, ...] = ("plain", "starttls", "tls")
#: A client that takes longer is stuck; seconds.
PATIENCE = 60


class Client(Protocol):
    """One mail client."""

    @property
    def name(self) -> str:
        """As its users know it."""

    @property
    def securities(self) -> tuple[Security, ...]:
        """What it can do to keep the key to itself."""

    @property
    def alternatives(self) -> bool:
        """Whether it can put a text and an HTML body side by side."""

    def missing(self) -> str:
        """What this machine lacks for it; empty if nothing."""

    def send(self, mail: Mail, account: Account, directory: Path) -> Answer:
        """Sends the mail; `directory` is empty, for what the client wants to have in files."""


class Smtplib:
    """Python's own."""

    name = "smtplib"
    securities = EVERY_SECURITY
    alternatives = True

    def missing(self) -> str:
        """See Client."""
        return ""

    def send(self, mail: Mail, account: Account, directory: Path) -> Answer:
        """See Client."""
        context = ssl.create_default_context(cafile=account.authority)
        try:
            with self._connect(account, context) as client:
                if account.security == "starttls":
                    client.starttls(context=context)
                client.login(account.username, account.password)
                refused = client.send_message(mail.composed())
        except smtplib.SMTPException as error:
            return Answer(False, repr(error))
        return Answer(not refused, repr(refused))

    def _connect(self, account: Account, context: ssl.SSLContext) -> smtplib.SMTP:
        if account.security == "tls":
            return smtplib.SMTP_SSL(account.host, account.port, timeout=PATIENCE, context=context)
        return smtplib.SMTP(account.host, account.port, timeout=PATIENCE)


@dataclass(frozen=True, slots=True)
class Library:
    """A mail library in a program of ours, which takes the mail as JSON on standard input."""

    name: str
    #: The interpreter, with its arguments.
    interpreter: tuple[str, ...]
    #: Fails where the library is not there; to be given to the interpreter.
    probe: tuple[str, ...]
    program: str
    securities: tuple[Security, ...] = EVERY_SECURITY
    alternatives: bool = True

    def missing(self) -> str:
        """See Client."""
        if shutil.which(self.interpreter[0]) is None:
            return f"{self.interpreter[0]} is not installed"
        probe = subprocess.run([*self.interpreter, *self.probe], capture_output=True, check=False)
        return f"{self.name} is not installed" if probe.returncode else ""

    def send(self, mail: Mail, account: Account, directory: Path) -> Answer:
        """See Client."""
        composed = mail.composed()
        del composed["Bcc"]
        order = {
            "account": account.as_json(),
            "mail": mail.as_json(),
            "envelope": mail.envelope,
            "message": composed.as_bytes().decode(),
        }
        # Each of them takes the authorities that it trusts from one of these, if it isn't told in another way.
        trust = {"SSL_CERT_FILE": account.authority, "NODE_EXTRA_CA_CERTS": account.authority}
        return _run([*self.interpreter, str(HERE / self.program)], json.dumps(order).encode(), **trust)


class Curl:
    """curl, which composes MIME by itself."""

    name = "curl"
    securities = EVERY_SECURITY
    alternatives = True

    def missing(self) -> str:
        """See Client."""
        return _lacking("curl")

    def send(self, mail: Mail, account: Account, directory: Path) -> Answer:
        """See Client."""
        scheme = "smtps" if account.security == "tls" else "smtp"
        arguments = ["curl", "--silent", "--show-error", "--verbose", "--max-time", str(PATIENCE)]
        arguments += ["--url", f"{scheme}://{account.host}:{account.port}/client.example"]
        arguments += ["--user", f"{account.username}:{account.password}", "--cacert", account.authority]
        arguments += ["--ssl-reqd"] if account.security == "starttls" else []
        arguments += ["--mail-from", mail.sender.address]
        for address in mail.envelope:
            arguments += ["--mail-rcpt", address]
        for header in _headers(mail):
            arguments += ["--header", header]
        if mail.html:
            arguments += ["--form", "=(;type=multipart/alternative"]
        arguments += ["--form", f"={mail.text};type=text/plain;encoder=quoted-printable"]
        if mail.html:
            path = directory / "html"
            path.write_text(mail.html)
            arguments += ["--form", f"=<{path};type=text/html;encoder=quoted-printable", "--form", "=)"]
        if mail.attachment is not None:
            path = directory / "attachment"
            path.write_bytes(mail.attachment.content)
            name, kind = mail.attachment.filename, mail.attachment.content_type
            arguments += ["--form", f"=@{path};filename={name};type={kind};encoder=base64"]
        return _run(arguments)


class Swaks:
    """swaks, which attaches files under names in raw UTF-8."""

    name = "swaks"
    securities = EVERY_SECURITY
    alternatives = False

    def missing(self) -> str:
        """See Client."""
        return _lacking("swaks")

    def send(self, mail: Mail, account: Account, directory: Path) -> Answer:
        """See Client."""
        security = {"plain": [], "starttls": ["--tls"], "tls": ["--tlsc"]}[account.security]
        arguments = ["swaks", "--server", account.host, "--port", str(account.port), *security]
        if account.security != "plain":
            arguments += ["--tls-verify", "--tls-ca-path", account.authority]
        arguments += ["--auth", "--auth-user", account.username, "--auth-password", account.password]
        arguments += ["--from", mail.sender.address, "--to", ",".join(mail.envelope)]
        for header in _headers(mail):
            arguments += ["--header", header]
        body, kind = (mail.html, "text/html") if mail.html else (mail.text, "text/plain")
        arguments += ["--header", "MIME-Version: 1.0"]
        if mail.attachment is None:
            arguments += ["--header", f"Content-Type: {kind}; charset=utf-8", "--body", body]
        else:
            path = directory / "attachment"
            path.write_bytes(mail.attachment.content)
            arguments += ["--attach-type", f"{kind}; charset=utf-8", "--attach-body", body]
            arguments += ["--attach-type", mail.attachment.content_type]
            arguments += ["--attach-name", mail.attachment.filename, "--attach", f"@{path}"]
        return _run(arguments)


class Msmtp:
    """msmtp, which takes a finished message and reads the recipients out of it."""

    name = "msmtp"
    securities = EVERY_SECURITY
    alternatives = True

    def missing(self) -> str:
        """See Client."""
        return _lacking("msmtp")

    def send(self, mail: Mail, account: Account, directory: Path) -> Answer:
        """See Client."""
        settings = {
            "account": "default",
            "host": account.host,
            "port": account.port,
            "from": mail.sender.address,
            "auth": "on",
            "user": account.username,
            "password": account.password,
            "tls": "off" if account.security == "plain" else "on",
            "tls_starttls": "on" if account.security == "starttls" else "off",
            "tls_trust_file": account.authority,
        }
        if account.security == "plain":
            settings["auth"] = "plain"  # it would not give a password away in the clear unless told so
        path = directory / "msmtprc"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        message = mail.composed().as_bytes().replace(b"\r\n", b"\n")
        return _run(["msmtp", f"--file={path}", "--read-recipients", "--debug"], message)


class Snail:
    """s-nail, the mailx of several distributions."""

    name = "s-nail"
    securities = EVERY_SECURITY
    alternatives = False

    def missing(self) -> str:
        """See Client."""
        return _lacking("s-nail")

    def send(self, mail: Mail, account: Account, directory: Path) -> Answer:
        """See Client."""
        scheme = "smtps" if account.security == "tls" else "smtp"
        url = f"{scheme}://{account.username}:{account.password}@{account.host}:{account.port}"
        settings = ["v15-compat", f"mta={url}", "sendwait", "smtp-auth=plain", "ttycharset=utf-8", "expandaddr"]
        settings += ["tls-verify=strict", f"tls-ca-file={account.authority}", "hostname=client.example"]
        settings += ["smtp-use-starttls"] if account.security == "starttls" else []
        arguments = ["s-nail", "-:/", "-#", "-vv", "-s", mail.subject, "-r", _typed(mail.sender)]
        for setting in settings:
            arguments += ["-S", setting]
        for option, people in (("-c", mail.cc), ("-b", mail.bcc)):
            for person in people:
                arguments += [option, _typed(person)]
        if mail.attachment is not None:
            path = directory / mail.attachment.filename
            path.write_bytes(mail.attachment.content)
            arguments += ["-a", str(path)]
        if mail.html:
            arguments += ["-M", "text/html"]
        arguments += ["-.", *(_typed(person) for person in mail.to)]
        return _run(arguments, (mail.html or mail.text).encode(), LC_ALL="C.UTF-8")


#: What is on most machines, or comes from PyPI.
EVERYDAY: tuple[Client, ...] = (
    Smtplib(),
    Library("Django", (sys.executable,), ("-c", "import django"), "django_client.py"),
    Curl(),
)

CLIENTS: tuple[Client, ...] = (
    *EVERYDAY,
    Swaks(),
    Msmtp(),
    Snail(),
    Library("nodemailer", ("node",), ("-e", "require('nodemailer')"), "nodemailer_client.cjs"),
    Library(
        "PHPMailer",
        ("php",),
        ("-r", "exit((int) !stream_resolve_include_path(getenv('PHPMAILER') ?: 'libphp-phpmailer/autoload.php'));"),
        "phpmailer_client.php",
    ),
    Library("Net::SMTP", ("perl",), ("-MNet::SMTP", "-MAuthen::SASL", "-MIO::Socket::SSL", "-e1"), "netsmtp_client.pl"),
    Library("Ruby mail", ("ruby",), ("-rmail", "-e1"), "rubymail_client.rb"),
)


def _lacking(program: str) -> str:
    return "" if shutil.which(program) else f"{program} is not installed"


def _run(arguments: list[str], standard_input: bytes = b"", **environment: str) -> Answer:
    ended = subprocess.run(
        arguments,
        input=standard_input,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        timeout=PATIENCE,
        check=False,
    )
    return Answer(ended.returncode == 0, ended.stdout.decode(errors="replace"))


def _headers(mail: Mail) -> list[str]:
    """For the clients that leave the header to their user."""
    headers = [f"From: {_encoded(mail.sender)}"]
    for name, people in (("To", mail.to), ("Cc", mail.cc)):
        headers += [f"{name}: {', '.join(_encoded(person) for person in people)}"] if people else []
    return [*headers, f"Subject: {Header(mail.subject, 'utf-8', maxlinelen=900).encode()}"]


def _encoded(person: Person) -> str:
    if not person.name:
        return person.address
    word = base64.b64encode(person.name.encode()).decode()
    return f"=?utf-8?B?{word}?= <{person.address}>"


def _typed(person: Person) -> str:
    # Quotes where they are needed only: s-nail takes them into the encoded words, where they are part of the name.
    name = f'"{person.name}"' if set(person.name) & set('(),.:;<>@[]"') else person.name
    return f"{name} <{person.address}>" if name else person.address
