"""`./scripts/try_container`: the image, built and run as docs/install.md says, with a mail through it."""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/try_container instead.")

import argparse
import contextlib
import os
import re
import shutil
import smtplib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from scripts.containers import Container, ContainerFailed, Engine, find_engine, run
from scripts.database import NewApiKey, apply_schema, create_api_key, query
from scripts.services import Postgres, ServiceFailed, Valkey, free_port, start_together

ROOT: Final = Path(__file__).resolve().parent.parent
IMAGE: Final = "localhost/opensend-relay-trial"
LOCAL_BASE: Final = "localhost/opensend-relay-trial-base"
#: Certificates that this machine trusts, its own among them where a proxy of its network has one.
AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
#: Programs that have no place in the result.
COMPILERS: Final = ("cc", "gcc", "g++", "clang", "tcc", "ld", "make")
PATIENCE: Final = 120.0
MESSAGE: Final = "From: ann@example.com\r\nTo: bob@example.com\r\nSubject: Container\r\n\r\nIs it there?\r\n"


def main(arguments: list[str]) -> int:
    """The exit status: 0 all is well, 1 something is not, 3 nothing here builds images."""
    parser = argparse.ArgumentParser(
        prog="./scripts/try_container",
        description="Builds the image with docker, podman or buildah (as root), runs relay, delivery worker and HTTP"
        " process of it with a read-only file system beside a Postgres and a Valkey of this machine, sends mails, ends"
        " all by SIGTERM and reads the exit statuses. Where the base image can't be pulled, one is made by mmdebstrap"
        " of the packages that this machine's apt has. Exit status: 0 all is well, 1 not, 3 nothing to build with.",
    )
    parser.add_argument("--engine", choices=("docker", "podman", "buildah"), help="instead of the first that works")
    parser.add_argument("--base", help="instead of the Dockerfile's own base")
    options = parser.parse_args(arguments)
    engine = find_engine(options.engine)
    if engine is None:
        print("NOT TRIED: no docker or podman answers here, and there is no buildah (which has to be run by root).")
        return 3
    print(f"with {engine.name}")
    with tempfile.TemporaryDirectory(prefix="opensend-container-") as directory:
        try:
            _try(engine, options.base, Path(directory))
        except (ContainerFailed, ServiceFailed) as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print("all is well")
    return 0


def _try(engine: Engine, base: str | None, folder: Path) -> None:
    _build(engine, base, folder)
    _look_into(engine)
    # Postgres may run as another user than this one, who has to get through to its folder.
    folder.chmod(0o755)
    postgres, valkey = Postgres(folder / "postgres"), Valkey(folder / "valkey")
    start_together(postgres, valkey)
    with postgres, valkey:
        apply_schema(postgres.url())
        settings = {"DATABASE_URL": postgres.url(), "REDIS_URL": valkey.url, "SMTP_RELAY_HOST": "127.0.0.1"}
        _serve(engine, settings, create_api_key(postgres.url()), folder)


# The image.


def _build(engine: Engine, base: str | None, folder: Path) -> None:
    chosen = base or _default_base()
    if not engine.has(chosen):
        if base is not None:
            raise ContainerFailed(f"{base} can't be pulled")
        print(f"{chosen} can't be pulled: making a base of this machine's own packages, by mmdebstrap …", flush=True)
        archive = folder / "base.tar"
        _make_base(archive)
        engine.import_base(LOCAL_BASE, archive)
        archive.unlink()
        chosen = LOCAL_BASE
    index = os.environ.get("PIP_INDEX_URL")
    began = time.monotonic()
    engine.build(ROOT, IMAGE, {"BASE": chosen, **({"PIP_INDEX_URL": index} if index else {})})
    print(f"built of {chosen} in {time.monotonic() - began:.0f} s")


def _default_base() -> str:
    found = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def _make_base(archive: Path) -> None:
    """A root file system of this Debian or Ubuntu with Python, from where this machine's apt has its packages."""
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        raise ContainerFailed("a base can be made by mmdebstrap alone, by root: apt install mmdebstrap")
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    sources = [
        *(path for path in (Path("/etc/apt/sources.list"),) if path.exists()),
        *sorted(path for path in Path("/etc/apt/sources.list.d").iterdir() if path.suffix in (".list", ".sources")),
    ]
    # How this machine's apt reaches its sources, a proxy for example.
    reached = run("apt-config", "dump", "--format", '%f "%v";%n', "Acquire").splitlines()
    options = [f"--aptopt={line}" for line in reached if not line.endswith('"";')]
    if AUTHORITIES.exists():
        options.append(f"--customize-hook=upload {AUTHORITIES} {AUTHORITIES}")
    packages = "--include=python3,python3-venv,ca-certificates"
    suite = release["VERSION_CODENAME"]
    run("mmdebstrap", "--quiet", "--variant=minbase", packages, *options, suite, str(archive), *map(str, sources))


def _look_into(engine: Engine) -> None:
    version = engine.once(IMAGE, "opensend-relay", "--version")
    if version.returncode:
        raise ContainerFailed(f"opensend-relay --version: {version.stderr.strip()}")
    print(version.stdout.strip())
    who = engine.once(IMAGE, "id", "-u").stdout.strip()
    if who in ("", "0"):
        raise ContainerFailed(f"the image's user is {who or 'unknown'}")
    found = engine.once(IMAGE, "sh", "-c", f"for each in {' '.join(COMPILERS)}; do command -v $each; done; true").stdout
    if found:
        raise ContainerFailed(f"compilers in the image: {' '.join(found.split())}")
    print(f"user {who}, no compiler")


# What runs of it.


def _serve(engine: Engine, settings: Mapping[str, str], key: NewApiKey, folder: Path) -> None:
    port = free_port()
    roles = {
        "serve": {"SMTP_RELAY_PORT": str(port)},
        "worker": {"SMTP_RELAY_PROVIDER": "maildir", "SMTP_RELAY_MAILDIR": "/tmp/mails"},  # noqa: S108 - in a container
        "web": {"SMTP_RELAY_HTTP_PORT": str(free_port())},
    }
    health = engine.healthcheck(IMAGE)
    with contextlib.ExitStack() as stack:
        containers = {
            # The relay is what the image runs by itself.
            role: stack.enter_context(
                _container(engine, [] if role == "serve" else [role], {**settings, **of_role}, folder)
            )
            for role, of_role in roles.items()
        }
        for role, container in containers.items():
            _until(container, f"{role} healthy", partial(_is_healthy, container, health))
            print(f"{role}: {container.execute(*health).stdout.strip()}")
        _send(port, key)
        _until(
            containers["worker"],
            "the mail to leave",
            lambda: query(settings["DATABASE_URL"], "SELECT 1 FROM emails WHERE status = 'sent'") != [],
        )
        print("a mail was accepted, stored, and written to a file by the worker")
        _end(containers, port, key)


@contextlib.contextmanager
def _container(engine: Engine, arguments: list[str], variables: Mapping[str, str], folder: Path) -> Iterator[Container]:
    container = engine.start(IMAGE, arguments, variables, folder)
    try:
        yield container
    except BaseException:
        print(container.log(), file=sys.stderr)
        raise
    finally:
        container.remove()


def _is_healthy(container: Container, health: list[str]) -> bool:
    return container.execute(*health).returncode == 0


def _until(container: Container, what: str, so: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not so():
        if time.monotonic() > until:
            raise ContainerFailed(f"waited for {PATIENCE:.0f} s for this: {what}")
        time.sleep(0.5)


def _send(port: int, key: NewApiKey) -> None:
    with smtplib.SMTP("127.0.0.1", port, "localhost", timeout=PATIENCE) as client:
        client.login("opensend", key.token)
        client.sendmail("ann@example.com", ["bob@example.com"], MESSAGE)


def _end(containers: Mapping[str, Container], port: int, key: NewApiKey) -> None:
    """SIGTERM to all; a client that is in the midst of a message at the relay gets its 250 all the same."""
    relay = containers["serve"]
    client = smtplib.SMTP("127.0.0.1", port, "localhost", timeout=PATIENCE)
    client.login("opensend", key.token)
    for command in ("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.com>", "DATA"):
        client.docmd(command)
    with ThreadPoolExecutor() as threads:
        ends = {role: threads.submit(container.stop) for role, container in containers.items()}
        _until(relay, "the relay to drain", lambda: '"draining"' in relay.log())
        client.send(f"{MESSAGE}.\r\n")
        reply = client.getreply()
        client.close()
        statuses = {role: end.result() for role, end in ends.items()}
    print(f"SIGTERM in the midst of a message: {reply[0]}; exit statuses {statuses}")
    if reply[0] != 250 or any(statuses.values()):
        raise ContainerFailed("a message in transit should be taken, and each exit status be 0")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
