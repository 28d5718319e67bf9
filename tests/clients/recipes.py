"""The recipes of docs/clients.md, run as they stand there: its code blocks, and what runs each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.clients.mail import Account, Answer, Mail, Person
from tests.clients.mail_servers import SENDER, Exim, Postfix

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients.md"
GLUE = Path(__file__).resolve().parent / "recipes"
#: The file of certificate authorities that the blocks name.
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
#: A client that takes longer is stuck; seconds. Go compiles first.
PATIENCE = 300

_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Section:
    """One recipe as the page has it."""

    #: The code blocks, in their order.
    blocks: tuple[str, ...]
    #: What the client shows for a wrong key; empty where the page doesn't say.
    shown: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a recipe is to send to, and with what."""

    account: Account
    #: `SMTP_RELAY_TLS_PORT`; of a relay without a certificate: its port without TLS.
    tls_port: int
    #: Whether the client is told to trust the authority of the account.
    trusted: bool = True

    def filled(self, text: str) -> str:
        """A block, or what is shown, with this place's host, ports, key and authorities."""
        values = {
            "relay.example.com": self.account.host,
            "192.0.2.25": "127.0.0.1",
            "2587": str(self.account.port),
            "2465": str(self.tls_port),
            "os_live_…": self.account.password,
        }
        if self.trusted:
            values[AUTHORITIES] = self.account.authority
        for name, value in values.items():
            text = text.replace(name, value)
        return text


class Recipe(Protocol):
    """What runs a section of the page."""

    @property
    def name(self) -> str:
        """The section's heading."""

    @property
    def clear_to_localhost(self) -> bool:
        """Whether the client sends a key in the clear to the name localhost, and to no other."""

    def missing(self) -> str:
        """What this machine lacks for it; empty if nothing."""

    def version(self) -> str:
        """What it is run with."""

    def send(self, section: Section, place: Place, mark: str, directory: Path) -> Answer:
        """Sends a mail with the mark as its subject; `directory` is empty."""


def sections() -> dict[str, Section]:
    """The page's sections by their headings."""
    _, *rest = _HEADING.split(PAGE.read_text("utf-8"))
    found = {}
    for name, text in zip(rest[::2], rest[1::2], strict=True):
        blocks = _BLOCK.findall(text)
        code = tuple(block for language, block in blocks if language != "text")
        found[name] = Section(code, "".join(block for language, block in blocks if language == "text").strip())
    return found


@dataclass(frozen=True, slots=True)
class Program:
    """A recipe that a program of `tests/clients/recipes` runs."""

    name: str
    #: The program's name.
    glue: str
    #: The interpreter, with its arguments.
    interpreter: tuple[str, ...]
    #: Fails where something lacks, and prints the version; to be given to the interpreter.
    probe: tuple[str, ...]
    #: Which of the products that the program knows; empty where it knows one.
    product: str = ""
    #: Whether the block takes the place of the line RECIPE, since the language has no way to read it.
    spliced: bool = False
    clear_to_localhost: bool = False
    #: What the interpreter is told before the program's path.
    command: tuple[str, ...] = ()

    def missing(self) -> str:
        """See Recipe."""
        if shutil.which(self.interpreter[0]) is None:
            return f"{self.name}: {self.interpreter[0]} is not installed"
        return f"{self.name}: its library is not installed" if self._probed().returncode else ""

    def version(self) -> str:
        """See Recipe."""
        return " ".join(self._probed().stdout.split())

    def _probed(self) -> subprocess.CompletedProcess[str]:
        command = [*self.interpreter, *self.probe]
        return subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)

    def send(self, section: Section, place: Place, mark: str, directory: Path) -> Answer:
        """See Recipe."""
        program = directory / self.glue
        blocks = []
        for number, text in enumerate(section.blocks):
            block = directory / f"block{number}"
            block.write_text(place.filled(text))
            blocks.append(str(block))
        code = (GLUE / self.glue).read_text()
        if self.spliced:
            code = code.replace("\t// RECIPE\n", Path(blocks[0]).read_text())
        program.write_text(code)
        given = [self.product] if self.product else []
        arguments = [*given, mark, *([] if self.spliced else blocks)]
        trust: dict[str, str] = {}
        if place.trusted:
            trust = {"SSL_CERT_FILE": place.account.authority, "NODE_EXTRA_CA_CERTS": place.account.authority}
            if program.suffix == ".java":
                trust["JAVA_TOOL_OPTIONS"] = _java_trust(place.account.authority, directory)
        environment = {**_environment(), **trust, "OPENSEND_API_KEY": place.account.password}
        return _run([*self.interpreter, *self.command, str(program), *arguments], environment)


class Msmtp:
    """msmtp with the page's configuration file."""

    name = "msmtp"
    clear_to_localhost = False

    def missing(self) -> str:
        """See Recipe."""
        return "" if shutil.which("msmtp") else "msmtp is not installed"

    def version(self) -> str:
        """See Recipe."""
        return subprocess.run(["msmtp", "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]

    def send(self, section: Section, place: Place, mark: str, directory: Path) -> Answer:
        """See Recipe."""
        path = directory / "msmtprc"
        path.touch(mode=0o600)
        path.write_text(place.filled(section.blocks[0]))
        message = f"From: you@example.com\nTo: to@x.example\nSubject: {mark}\n\nHello\n"
        return _run(["msmtp", f"--file={path}", "--read-recipients"], dict(os.environ), message)


class PostfixRecipe(Postfix):
    """Postfix with the page's main.cf and sasl_passwd, beside a configuration that only separates it."""

    def __init__(self, directory: Path, section: Section, place: Place) -> None:
        """See MailServer."""
        super().__init__(directory)
        self._section = section
        self._place = place

    def _smart_host(self, account: Account) -> str:
        main, passwords = map(self._place.filled, self._section.blocks)
        file = self._directory / "sasl_passwd"
        file.touch(mode=0o600)
        file.write_text(passwords)
        self._run("postmap", str(file))
        return main.replace("/etc/postfix/sasl_passwd", str(file))


class EximRecipe(Exim):
    """Exim with the page's router, transport and authenticator."""

    def __init__(self, directory: Path, section: Section, place: Place) -> None:
        """See MailServer."""
        super().__init__(directory)
        self._section = section
        self._place = place

    def _smart_host(self, account: Account) -> tuple[str, str, str]:
        router, transport, authenticator = map(self._place.filled, self._section.blocks)
        # Exim sends nothing to the machine that it runs on, unless it is told to.
        return f"{router}  self = send\n", f"{transport}  allow_localhost\n", authenticator


@dataclass(frozen=True, slots=True)
class SmartHost:
    """A recipe for a mail server: accepted is what has left its queue."""

    name: str
    kind: type[PostfixRecipe | EximRecipe]
    version_command: tuple[str, ...]
    clear_to_localhost: bool = False

    def missing(self) -> str:
        """See Recipe."""
        return self.kind.missing()

    def version(self) -> str:
        """See Recipe."""
        output = subprocess.run(self.version_command, capture_output=True, text=True, check=False).stdout
        number = re.search(r"\d+\.[\d.]+", output)
        return f"{self.name} {number[0] if number else ''}"

    def send(self, section: Section, place: Place, mark: str, directory: Path) -> Answer:
        """See Recipe. Waits until the queue is empty, or the log tells of a failed attempt."""
        server = self.kind(directory, section, place)
        server.start(place.account)
        try:
            server.submit(Mail(mark, (Person("to@x.example"),), Person(SENDER)))
            deadline = time.monotonic() + PATIENCE
            while server.queue() and not re.search(r"status=deferred| == to@x\.example ", server.said()):
                assert time.monotonic() < deadline, f"neither sent nor put off: {server.said()}"
                time.sleep(0.1)
            return Answer(not server.queue(), server.said())
        finally:
            server.stop()


_PHP = ("php", "-d", "display_errors=stderr")
_SYMFONY = (
    "require getenv('SYMFONY_MAILER') ?: 'Symfony/Component/Mailer/autoload.php';"
    "$class = 'Symfony\\Component\\Mailer\\Transport\\Smtp\\EsmtpTransport';"
)
_LARAVEL = (
    "require getenv('LARAVEL') ?: 'Illuminate/Mail/autoload.php';"
    "$class = 'Symfony\\Component\\Mailer\\Transport\\Smtp\\EsmtpTransport';"
)
#: Releases before 7.3 don't know `require_tls`, which the recipes need.
_REQUIRE_TLS = "echo 'PHP ', PHP_VERSION; exit((int) !method_exists($class, 'setRequireTls'));"
_ACTION_MAILER = (
    "require 'mail'; require 'action_mailer';"
    " puts 'actionmailer %s, mail %s' % [ActionMailer.version, Mail::VERSION.version]"
)
_JAVA = ("java", "-cp", os.environ.get("CLASSPATH", "/usr/share/java/*"))

RECIPES: tuple[Recipe, ...] = (
    Program("Python", "smtplib_recipe.py", (sys.executable,), ("--version",)),
    Program(
        "Django",
        "django_recipe.py",
        (sys.executable,),
        ("-c", "import django; print('Django', django.__version__)"),
    ),
    Program(
        "nodemailer",
        "nodemailer_recipe.cjs",
        ("node",),
        ("-p", "`nodemailer ${require('nodemailer/package.json').version}, Node.js ${process.version}`"),
    ),
    Program(
        "PHPMailer",
        "phpmailer_recipe.php",
        _PHP,
        (
            "-r",
            "require getenv('PHPMAILER') ?: 'libphp-phpmailer/autoload.php';"
            "echo 'PHPMailer ', PHPMailer\\PHPMailer\\PHPMailer::VERSION, ', PHP ', PHP_VERSION;",
        ),
    ),
    Program(
        "WordPress",
        "wordpress_recipe.php",
        _PHP,
        ("-r", "require getenv('WORDPRESS') . '/wp-includes/version.php'; echo 'WordPress ', $wp_version;"),
    ),
    Program("Symfony", "symfony_recipe.php", _PHP, ("-r", _SYMFONY + _REQUIRE_TLS), "Symfony"),
    Program("Laravel", "laravel_recipe.php", _PHP, ("-r", _LARAVEL + _REQUIRE_TLS)),
    Program(
        "Nextcloud",
        "symfony_recipe.php",
        _PHP,
        ("-r", _SYMFONY + "new $class(); echo 'PHP ', PHP_VERSION;"),
        "Nextcloud",
    ),
    Program("Rails", "action_mailer_recipe.rb", ("ruby",), ("-e", _ACTION_MAILER), "Rails"),
    Program("GitLab", "action_mailer_recipe.rb", ("ruby",), ("-e", _ACTION_MAILER), "GitLab"),
    Program("Spring", "SpringRecipe.java", _JAVA, (str(GLUE / "SpringRecipe.java"),)),
    Program("Jakarta Mail", "JakartaMailRecipe.java", _JAVA, (str(GLUE / "JakartaMailRecipe.java"),), spliced=True),
    Program(
        "Go",
        "net_smtp_recipe.go",
        ("go",),
        ("version",),
        spliced=True,
        clear_to_localhost=True,
        command=("run",),
    ),
    Program("gomail", "gomail_recipe.go", ("go",), ("list", "gopkg.in/mail.v2"), spliced=True, command=("run",)),
    Program("Grafana", "grafana_recipe.go", ("go",), ("list", "gopkg.in/mail.v2"), command=("run",)),
    SmartHost("Postfix", PostfixRecipe, ("postconf", "-h", "mail_version")),
    SmartHost("Exim", EximRecipe, ("exim4", "-bV")),
    Msmtp(),
)


def _environment() -> dict[str, str]:
    """Where Debian's packages of Go have their code, unless the user has chosen another place."""
    return {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", **os.environ}


def _java_trust(authority: str, directory: Path) -> str:
    store = directory / "truststore"
    command = ["keytool", "-importcert", "-noprompt", "-file", authority, "-keystore", str(store)]
    subprocess.run([*command, "-storepass", "changeit"], capture_output=True, check=True)
    return f"-Djavax.net.ssl.trustStore={store} -Djavax.net.ssl.trustStorePassword=changeit"


def _run(command: list[str], environment: dict[str, str], standard_input: str = "") -> Answer:
    ended = subprocess.run(
        command,
        input=standard_input,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        timeout=PATIENCE,
        check=False,
    )
    return Answer(ended.returncode == 0, ended.stdout)
