"""`./scripts/dev` as a person meets it: started for real, in a copy of the checkout, from another directory."""

from __future__ import annotations

import email
import email.policy
import http.client
import os
import re
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path

import psutil
import pytest

from scripts.database import query
from scripts.services import free_port, processes
from tests.support.service_process import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
UP = "Ctrl-C stops all."
BY_STATUS = "SELECT count(*)::int FROM emails WHERE status ="


class Dev:
    """A running `./scripts/dev`."""

    def __init__(self, checkout: Path, *arguments: str) -> None:
        self.checkout = checkout
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "scripts.dev", "--port", str(self.port), *arguments],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""
        self.family: list[psutil.Process] = []

    def wait_until_up(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if UP in line:
                self.family = processes.family(self.process.pid)
                return
        pytest.fail(f"ended before it was up:\n{self.printed}")

    def printed_value(self, name: str) -> str:
        match = re.search(rf"^ +{name} +(\S+)", self.printed, re.MULTILINE)
        assert match, self.printed
        return match[1]

    def send(self, program: str) -> None:
        """Runs the printed line that begins so, in a shell, as it stands."""
        (line,) = (line for line in self.printed.splitlines() if line.startswith(program))
        subprocess.run(["sh", "-c", line], check=True, timeout=60)

    def subjects(self) -> list[object]:
        return [subject for (subject,) in self.rows("SELECT subject FROM emails")]

    def mail(self, to: str) -> None:
        """An HTML mail with a link."""
        context = ssl.create_default_context(cafile=str(self.checkout / ".dev" / "tls" / "certificate.pem"))
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "me@example.com", to, "Hello"
        message.set_content('<a href="https://target.example/">go</a>', subtype="html")
        with smtplib.SMTP("127.0.0.1", self.port, "localhost", timeout=60) as client:
            client.starttls(context=context)
            client.login("opensend", self.printed_value("API key"))
            client.send_message(message)

    def clicked(self, mails: Path) -> str | None:
        """Where the link leads to that is in one of the files."""
        texts = [email.message_from_bytes(path.read_bytes(), policy=email.policy.default) for path in mails.iterdir()]
        bodies = [str(text.get_content()) for text in texts if text.get_content_type() == "text/html"]
        (link,) = re.findall(r'href="http://127\.0\.0\.1:(\d+)([^"]+)"', "".join(bodies))
        connection = http.client.HTTPConnection("127.0.0.1", int(link[0]), timeout=60)
        try:
            connection.request("GET", link[1])
            return connection.getresponse().headers["Location"]
        finally:
            connection.close()

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        environment = (self.checkout / ".dev" / "environment").read_text()
        url = re.search(r"DATABASE_URL='(.*)'", environment)
        assert url
        return query(url[1], statement)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Sends the signal, waits for the end and returns the exit status."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.printed += self.process.stdout.read()
        return self.process.wait(60)

    def look(self, *arguments: str) -> list[str]:
        """The lines of `./scripts/look`."""
        command = [sys.executable, "-P", "-m", "scripts.look", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(self.checkout)}
        ended = subprocess.run(
            command, cwd="/", env=environment, check=True, capture_output=True, text=True, timeout=60
        )
        return ended.stdout.splitlines()

    def left_running(self) -> list[psutil.Process]:
        return [one for one in self.family if not processes.ended(one)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("a checkout")
    for name in ("relay", "config", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def start(checkout: Path) -> Iterator[Callable[..., Dev]]:
    started: list[Dev] = []

    def start(*arguments: str) -> Dev:
        dev = Dev(checkout, *arguments)
        started.append(dev)
        dev.wait_until_up()
        return dev

    yield start
    for dev in started:
        if dev.process.poll() is None:
            dev.stop(signal.SIGTERM)


def test_the_printed_lines_send_mail_and_the_next_start_finds_it(start: Callable[..., Dev], checkout: Path) -> None:
    first = start("--reset")
    first.send("python3")
    if shutil.which("curl"):
        first.send("printf")
    first.mail("bounce@simulator.amazonses.com")
    sent = first.subjects()
    assert len(sent) == (3 if shutil.which("curl") else 2)
    mails = checkout / ".dev" / "mails" / "new"
    eventually("a file for each", lambda: len(list(mails.glob("*.eml"))) == len(sent))
    # What becomes of them comes back without Amazon, and a link leads on.
    eventually("delivered", lambda: first.rows(f"{BY_STATUS} 'delivered'") == [(len(sent) - 1,)])
    eventually("bounced", lambda: first.rows(f"{BY_STATUS} 'bounced'") == [(1,)])
    listed = first.look()
    assert len(listed) == len(sent)
    (bounced,) = (line.split()[1] for line in listed if "bounce@simulator" in line)
    whole = first.look(bounced)
    assert "subject:             Hello" in whole
    assert any("bounced" in line for line in whole if line.startswith("event: "))
    assert first.rows("SELECT email, reason FROM email_suppressions") == [("bounce@simulator.amazonses.com", "bounced")]
    assert first.clicked(mails) == "https://target.example/"
    eventually("clicked", lambda: first.rows("SELECT FROM email_events WHERE type = 'email.clicked'"))
    assert first.stop() == 0
    assert first.left_running() == []
    assert len(
        re.findall(r"  sent +[0-9a-f-]{36}  \.dev/mails/new/[0-9a-f-]{36}\.eml$", first.printed, re.MULTILINE)
    ) == (len(sent))
    told = re.findall(r"^\d\d:\d\d:\d\d  event     [0-9a-f-]{36}  ([a-z]+)$", first.printed, re.MULTILINE)
    assert sorted(told) == sorted(["bounced", "clicked", *["delivered"] * (len(sent) - 1), *["sent"] * len(sent)])
    accepted = re.findall(
        r"^\d\d:\d\d:\d\d  accepted  [0-9a-f-]{36}  \d+ octets, 1 recipient$", first.printed, re.MULTILINE
    )
    assert len(accepted) == len(sent), first.printed

    second = start()
    assert second.printed_value("API key") == first.printed_value("API key")
    assert second.subjects() == sent
    second.stop()

    third = start("--reset")
    assert third.printed_value("API key") != first.printed_value("API key")
    assert third.subjects() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_it_too(start: Callable[..., Dev], number: signal.Signals) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests run under nohup, whose children ignore this signal")
    dev = start()
    assert dev.stop(number) == 0
    assert dev.left_running() == []


def test_what_a_killed_one_leaves_is_no_trouble(start: Callable[..., Dev]) -> None:
    killed = start()
    assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
    dev = start()
    assert dev.stop() == 0
    assert killed.left_running() == []


def test_secrets_are_for_their_owner_alone(start: Callable[..., Dev], checkout: Path) -> None:
    start()
    secrets = (
        *("api-key", "environment", "tls/key.pem", "tracking-secret", "ses/sns-key.pem"),
        *("postgres/password", "valkey/password", "valkey/valkey.conf"),
    )
    assert {name: oct((checkout / ".dev" / name).stat().st_mode & 0o777) for name in secrets} == dict.fromkeys(
        secrets, "0o600"
    )


def test_a_second_one_in_the_same_checkout_is_refused(start: Callable[..., Dev], checkout: Path) -> None:
    first = start()
    second = Dev(checkout)
    output, _ = second.process.communicate(timeout=30)
    assert second.process.returncode == 1
    assert output == f"./scripts/dev is already running in this checkout (process {first.process.pid}).\n"


def test_a_taken_port_is_one_clear_line(checkout: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        dev = Dev(checkout, "--port", str(port))
        output, _ = dev.process.communicate(timeout=30)
    assert dev.process.returncode == 1
    assert output == f"Port {port} on 127.0.0.1 is taken; choose another with --port.\n"


@pytest.mark.parametrize(
    ("script", "found"),
    [(None, "no python3"), ("#!/bin/sh\n[ $1 = --version ] && echo Python 3.8.1\n", "Python 3.8.1")],
)
def test_without_a_fit_python_it_says_so(tmp_path: Path, script: str | None, found: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "cmp"):
        (tools / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name} here"))
    if script is not None:
        (tools / "python3").write_text(script)
        (tools / "python3").chmod(0o755)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    ended = subprocess.run(
        [tmp_path / "scripts" / "dev"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == f"This needs Python 3.11 to 3.14 on the PATH; found: {found}.\n"
