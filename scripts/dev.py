"""`./scripts/dev`: a whole relay on this machine, with everything it needs, until Ctrl-C."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

import psycopg2

from scripts.certificate import ensure_certificate
from scripts.database import NewApiKey, apply_schema, ensure_api_key
from scripts.logview import LogView
from scripts.services import Delivery, Postgres, Relay, ServiceFailed, Valkey, start_together

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".dev"
HOST = "127.0.0.1"
DEFAULT_PORT = 2587
#: Any name does, the key alone counts (contract section 1).
USER_NAME = "opensend"
#: What a reset removes. The locks stay: another process may hold them.
DATA = ("postgres", "valkey", "relay", "delivery", "mails", "tls", "api-key", "environment")

_COLOURS = {"bold": "1", "dim": "2", "green": "32", "yellow": "33", "red": "31"}


class Refused(Exception):
    """It can't be done, and the text says why in one line."""


class Stop(Exception):
    """The end was asked for."""


class Screen:
    """Where a person reads. It may go away before we do: then there is nothing left to write to."""

    def __init__(self, out: TextIO, *, colour: bool) -> None:
        self._out = out
        self._colour = colour

    def paint(self, text: str, style: str) -> str:
        """The text in a style of `_COLOURS`, where colours are wanted."""
        return f"\033[{_COLOURS[style]}m{text}\033[0m" if self._colour else text

    def say(self, text: str = "") -> None:
        """One line."""
        try:
            print(text, file=self._out, flush=True)
        except OSError:  # the terminal was closed; SIGHUP tells us, or has told us
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self._out.fileno())


class Wish:
    """The signals that ask for the end. The first is noted and acted upon between two steps, the second at once."""

    def __init__(self) -> None:
        self.stop = False
        self.relay: Relay | None = None
        hang_up_counts = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # it doesn't under nohup
        for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hang_up_counts else ())):
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raises Stop if the end was asked for."""
        if self.stop:
            raise Stop

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.stop and self.relay is not None:
            self.relay.send_signal(signal.SIGTERM)
        self.stop = True


def main(arguments: list[str]) -> int:
    """The exit status: 0 stopped as asked, 1 it could not start or the relay ended by itself."""
    options = _options(arguments)
    colour = not options.no_color and not os.environ.get("NO_COLOR") and sys.stdout.isatty()
    screen = Screen(sys.stdout, colour=colour)
    wish = Wish()
    try:
        return _run(options, screen, wish)
    except Stop:
        return 0
    except (Refused, ServiceFailed) as error:
        reason = str(error)
    except psycopg2.Error as error:
        reason = f"Postgres: {str(error).strip().splitlines()[0]}"
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or STATE}"
    print(screen.paint(reason, "red"), file=sys.stderr)
    return 1


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./scripts/dev",
        description="Starts Postgres, Valkey and the relay on this machine, with an API key, and shows how to send a"
        " mail through it. Everything is kept in .dev/ for the next time. Ctrl-C stops it all.",
    )
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help="where the relay listens (default: %(default)s)"
    )
    parser.add_argument("--reset", action="store_true", help="begin again with an empty database and a new key")
    parser.add_argument("--no-color", action="store_true", help="plain text (also: NO_COLOR=1)")
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port number from 1 to 65535")
    return int(text)


def _run(options: argparse.Namespace, screen: Screen, wish: Wish) -> int:
    began = time.monotonic()
    STATE.mkdir(exist_ok=True)
    lock = _only_one()
    _check_port(options.port)
    if options.reset:
        _reset()
    postgres = Postgres(STATE / "postgres")
    valkey = Valkey(STATE / "valkey", persistent=True)
    relay = _relay(options.port, postgres, valkey)
    delivery = _delivery(postgres)
    try:
        if not (STATE / "environment").exists():
            screen.say("Making a database, an API key and a certificate in .dev/ …")
        start_together(postgres, valkey)
        wish.check()
        apply_schema(postgres.url())
        key = ensure_api_key(postgres.url(), STATE / "api-key")
        certificate, private_key = ensure_certificate(STATE / "tls")
        relay.set("SMTP_RELAY_TLS_CERT_PATH", str(certificate))
        relay.set("SMTP_RELAY_TLS_KEY_PATH", str(private_key))
        _write_environment(postgres, valkey, key, options.port)
        wish.check()
        relay.log_path.unlink(missing_ok=True)
        relay.start()
        wish.relay = relay
        delivery.log_path.unlink(missing_ok=True)
        delivery.start()
        _welcome(screen, options.port, key, time.monotonic() - began)
        views = [
            LogView(relay.log_path, screen.paint),
            LogView(delivery.log_path, screen.paint, (STATE / "mails" / "new").relative_to(ROOT)),
        ]
        _watch(screen, wish, (relay, delivery), views)
    finally:
        wish.stop = True  # from here on a signal is the second one
        if relay.running:
            screen.say("Stopping …")
        relay.stop()
        delivery.stop()
        wish.relay = None
        valkey.stop()
        postgres.stop()
        os.close(lock)
    for view in views:
        for line in view.new_lines():  # what was still done in the end
            screen.say(line)
    return 0


def _only_one() -> int:
    """Holds the lock that a second `./scripts/dev` in this checkout finds taken."""
    lock = os.open(STATE / "dev.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 100).decode() or "unknown"
        raise Refused(f"./scripts/dev is already running in this checkout (process {holder}).") from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _check_port(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError:
            raise Refused(f"Port {port} may not be used by this user; choose one from 1024 with --port.") from None
        except OSError:
            raise Refused(f"Port {port} on {HOST} is taken; choose another with --port.") from None


def _reset() -> None:
    for name in DATA:
        path = STATE / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _relay(port: int, postgres: Postgres, valkey: Valkey) -> Relay:
    return Relay(STATE / "relay", {"DATABASE_URL": postgres.url(), "REDIS_URL": valkey.url, "PORT": None}, port)


def _delivery(postgres: Postgres) -> Delivery:
    settings = {
        "DATABASE_URL": postgres.url(),
        "SMTP_RELAY_PROVIDER": "maildir",
        "SMTP_RELAY_MAILDIR": str(STATE / "mails"),
        "PORT": None,
    }
    return Delivery(STATE / "delivery", settings)


def _write_environment(postgres: Postgres, valkey: Valkey, key: NewApiKey, port: int) -> None:
    """For programs that want to look inside: psql "$DATABASE_URL", redis-cli -u "$REDIS_URL"."""
    lines = {
        "DATABASE_URL": postgres.url(),
        "REDIS_URL": valkey.url,
        "SMTP_HOST": HOST,
        "SMTP_PORT": str(port),
        "SMTP_USERNAME": USER_NAME,
        "SMTP_PASSWORD": key.token,
        "OPENSEND_USER_ID": key.user_id,
    }
    path = STATE / "environment"
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}='{value}'\n" for name, value in lines.items()))


def _welcome(screen: Screen, port: int, key: NewApiKey, seconds: float) -> None:
    def row(name: str, value: str, note: str = "") -> None:
        screen.say(f"  {screen.paint(f'{name:<11}', 'dim')}{screen.paint(value, 'bold')}{'  ' if note else ''}{note}")

    curl = (
        r"printf 'From: me@example.com\r\nTo: you@example.com\r\nSubject: Hello\r\n\r\nIt works.\r\n' |"
        f" curl -sS --ssl-reqd --insecure smtp://{HOST}:{port} --user '{USER_NAME}:{key.token}'"
        " --mail-from me@example.com --mail-rcpt you@example.com -T -"
    )
    python = (
        f"""python3 -c "import smtplib; s = smtplib.SMTP('{HOST}', {port}, 'localhost'); s.starttls();"""
        f""" s.login('{USER_NAME}', '{key.token}'); s.sendmail('me@example.com', ['you@example.com'],"""
        r""" 'From: me@example.com\nTo: you@example.com\nSubject: Hello\n\nIt works.\n'); s.quit()" """.rstrip()
    )
    screen.say(screen.paint(f"The relay is up ({seconds:.1f} s).", "green"))
    screen.say()
    row("Host", HOST)
    row("Port", str(port), "STARTTLS, with a certificate signed by itself")
    row("User name", USER_NAME, "any will do, only the key counts")
    row("API key", key.token)
    screen.say()
    screen.say("Send a mail from another terminal, with curl or with Python:")
    screen.say()
    screen.say(curl)
    screen.say()
    screen.say(python)
    screen.say()
    screen.say(
        screen.paint("What is sent becomes a file in .dev/mails/new and goes nowhere else. Ctrl-C stops all.", "dim")
    )
    screen.say()


def _watch(screen: Screen, wish: Wish, services: Sequence[Relay | Delivery], views: Sequence[LogView]) -> None:
    """Shows the logs until the end is asked for. Raises Refused when one of the services ends by itself."""
    while not wish.stop:
        for view in views:
            for line in view.new_lines():
                screen.say(line)
        for service in services:
            if not service.running:
                raise Refused(f"{service.name} ended by itself; its log is {service.log_path}.")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
