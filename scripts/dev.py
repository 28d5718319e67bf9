"""`./scripts/dev`: a whole relay on this machine, with everything it needs, until Ctrl-C."""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/dev instead.")

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
from scripts.database import NewApiKey, apply_schema, ensure_api_key, ensure_domain
from scripts.eventview import EventView
from scripts.logview import LogView
from scripts.services import (
    Delivery,
    Postgres,
    Relay,
    Server,
    ServiceFailed,
    Ses,
    Valkey,
    Web,
    free_port,
    start_together,
)
from scripts.services.server import secret
from scripts.services.sns_double import TOPIC

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".dev"
HOST = "127.0.0.1"
DEFAULT_PORT = 2587
#: Any name does, the key alone counts (contract section 1).
USER_NAME = "opensend"
#: The domain whose mails have tracked links, and which SES tells everything of.
DOMAIN = "example.com"
#: What a reset removes. The locks stay: another process may hold them.
DATA = (
    *("postgres", "valkey", "ses", "relay", "delivery", "web", "mails", "tls"),
    *("api-key", "environment", "http-port", "tracking-secret"),
)

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
        description="Starts Postgres, Valkey, the relay, the delivery worker, the HTTP process and a double of Amazon"
        " SES on this machine, with an API key, and shows how to send a mail through them and what becomes of it."
        " Everything is kept in .dev/ for the next time. Ctrl-C stops it all.",
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
    ses = Ses(STATE / "ses", named=STATE / "mails" / "new")
    servers: tuple[Server, ...] = ()
    own: tuple[Server, ...] = ()
    views: list[LogView | EventView] = []
    try:
        if not (STATE / "environment").exists():
            screen.say("Making a database, an API key and a certificate in .dev/ …")
        start_together(postgres, valkey, ses)
        servers = (postgres, valkey, ses)
        wish.check()
        apply_schema(postgres.url())
        key = ensure_api_key(postgres.url(), STATE / "api-key")
        ensure_domain(postgres.url(), DOMAIN, user_id=key.user_id, configuration_set="development")
        web = _web(postgres, valkey, ses)
        relay = _relay(options.port, postgres, valkey)
        delivery = _delivery(postgres, valkey, ses, web)
        _write_environment(postgres, valkey, key, options.port)
        wish.check()
        for each in (web, delivery, relay):
            each.log_path.unlink(missing_ok=True)
        start_together(web, delivery, relay)
        own = (web, delivery, relay)
        wish.relay = relay
        mails = (STATE / "mails" / "new").relative_to(ROOT)
        views = [LogView(service.log_path, screen.paint, mails) for service in reversed(own)]
        views.append(EventView(postgres.url(), screen.paint))
        _welcome(screen, options.port, key, time.monotonic() - began)
        _watch(screen, wish, (*servers, *own), views)
    finally:
        wish.stop = True  # from here on a signal is the second one
        if wish.relay is not None and wish.relay.running:
            screen.say("Stopping …")
        for service in reversed(own):
            service.stop()
        wish.relay = None
        for view in views:
            for line in view.new_lines():  # what was still done in the end
                screen.say(line)
        for server in reversed(servers):
            server.stop()
        os.close(lock)
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
    certificate, private_key = ensure_certificate(STATE / "tls")
    settings = {
        "DATABASE_URL": postgres.url(),
        "REDIS_URL": valkey.url,
        "SMTP_RELAY_TLS_CERT_PATH": str(certificate),
        "SMTP_RELAY_TLS_KEY_PATH": str(private_key),
        "PORT": None,
    }
    return Relay(STATE / "relay", settings, port)


def _web(postgres: Postgres, valkey: Valkey, ses: Ses) -> Web:
    """What SES tells of mails reaches it, by way of a double of SNS that it accepts."""
    port = _http_port()
    settings = {
        "DATABASE_URL": postgres.url(),
        "REDIS_URL": valkey.url,
        "TRACKING_SECRET": secret(STATE / "tracking-secret"),
        "SES_EVENTS_SNS_TOPIC_ARN": TOPIC,
        "PORT": None,
    }
    return Web(STATE / "web", settings, port, sns=ses.notify(f"http://{HOST}:{port}/events/ses"))


def _http_port() -> int:
    """That of the last time, so that links of earlier mails lead on; another one where it is taken."""
    path = STATE / "http-port"
    try:
        port = int(path.read_text())
        _check_port(port)
    except (FileNotFoundError, ValueError, Refused):
        port = free_port(HOST)
        path.write_text(str(port))
    return port


def _delivery(postgres: Postgres, valkey: Valkey, ses: Ses, web: Web) -> Delivery:
    settings = {
        **ses.client_environment,
        "DATABASE_URL": postgres.url(),
        "REDIS_URL": valkey.url,
        "SMTP_RELAY_PROVIDER": "ses",
        "TRACKING_SECRET": secret(STATE / "tracking-secret"),
        "TRACKING_BASE_URL": web.url,
        "SES_EVENTS_SNS_TOPIC_ARN": TOPIC,
        "PORT": None,
    }
    return Delivery(STATE / "delivery", settings)


def _write_environment(postgres: Postgres, valkey: Valkey, key: NewApiKey, port: int) -> None:
    """For ./scripts/look, and for programs of others: psql "$DATABASE_URL", redis-cli -u "$REDIS_URL"."""
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
    screen.say("A double of Amazon SES takes what is sent, and sends events about it: send to bounce@, complaint@,")
    screen.say("suppressionlist@ or ooto@simulator.amazonses.com too. All other mail is delivered.")
    screen.say()
    screen.say(
        screen.paint(
            "What is sent becomes a file in .dev/mails/new and goes nowhere else. ./scripts/look shows the rows."
            " Ctrl-C stops all.",
            "dim",
        )
    )
    screen.say()


def _watch(screen: Screen, wish: Wish, services: Sequence[Server], views: Sequence[LogView | EventView]) -> None:
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
