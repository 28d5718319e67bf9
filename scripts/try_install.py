"""`./scripts/try_install`: the commands of README and of docs/install.md in a new clone, as a new user types them."""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/try_install instead.")

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "docs/install.md")
#: A command that takes longer is stuck; seconds. The first one installs the dependencies.
PATIENCE = 900
#: Lines of a command's output that are shown, from the end.
_SHOWN = 12
#: Debian's user and group without rights.
_NOBODY = 65534
DESCRIPTION = """\
Clones the commit that is checked out into an empty folder and runs each command of README, CONTRIBUTING and
docs/install.md there, in a shell with an empty environment, as far as that goes without root, systemd and a network
other than the package index. Prints each command, what it wrote last, and its exit status; commands that were not run
are printed with the reason. Exit status 1 if one ended otherwise than it should.

--root FOLDER does it inside a folder that holds a whole Debian, as its user nobody, which needs root here:

  mmdebstrap --variant=minbase --include=python3,python3-venv,git,ca-certificates,curl trixie FOLDER
  echo 127.0.0.1 localhost > FOLDER/etc/hosts
  ./scripts/try_install --root FOLDER

PIP_* variables are handed on.
"""

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Step:
    """One command line of a page."""

    #: The beginning of the command line.
    begins: str
    #: What is run for it, in the clone; empty: nothing.
    instead: str = ""
    #: Why that, or why nothing; empty where the line is run as it stands.
    reason: str = ""
    #: Whether it runs until Ctrl-C.
    serves: bool = False
    #: The exit status that is right.
    status: int = 0


_AS_ROOT = "it needs root"
_SYSTEMD = "it needs root and systemd"
_CONTAINER = "./scripts/try_container runs the container"
_CLUSTER = "it needs a cluster"
_PUBLIC = "it needs a public name and port 80"
_TRIAL = "the trial's .venv stays"
STEPS = (
    Step("./scripts/dev", "./scripts/dev --port 25870", "port 2587 may be taken here", serves=True),
    Step("./scripts/test", "./scripts/test tests/unit/test_readme.py -q", "all tests take twenty minutes"),
    Step(
        'PATH="$PWD/.venv/bin:$PATH" honcho start',
        'PATH="$PWD/.venv/bin:$PATH" honcho start',
        "without settings the processes name DATABASE_URL and end with status 2",
        status=2,
    ),
    Step("git clone REPOSITORY", reason="the clone is what this runs in"),
    Step("cd /opt/opensend-relay", reason="the clone is in another folder"),
    Step("git fetch --tags", reason="the clone has no tags"),
    Step("git checkout TAG", reason="the clone has no tags"),
    Step("python3 -m venv .venv", "python3 -m venv production", _TRIAL),
    Step(
        "(set -a; . /etc/opensend-relay.env;",
        "(export DATABASE_URL=postgresql://127.0.0.1:1/none; exec production/bin/opensend-relay check)",
        "there is no database here; it must end with status 1",
        status=1,
    ),
    Step("systemctl", reason=_SYSTEMD),
    Step("cp docs/systemd", reason=_SYSTEMD),
    Step("for unit in", reason=_SYSTEMD),
    Step("install -m", reason=_AS_ROOT),
    Step("groupadd", reason=_AS_ROOT),
    Step("cat >> /etc", reason=_AS_ROOT),
    Step("mkdir -p -m 0700 /etc", reason=_AS_ROOT),
    Step("docker", reason=_CONTAINER),
    Step("printf 'From:", reason=_CONTAINER),
    Step("kubectl", reason=_CLUSTER),
    Step("certbot", reason=_PUBLIC),
    Step("acme.sh", reason=_PUBLIC),
)
#: Commands of the pages' text, run while ./scripts/dev serves.
WHILE_SERVING = (
    "set -a; . .dev/environment; SMTP_RELAY_PORT=25871 .venv/bin/python -m relay --check",
    "set -a; . .dev/environment; SMTP_RELAY_PROVIDER=maildir .venv/bin/python -m relay.delivery --check",
    "set -a; . .dev/environment; .venv/bin/python -m scripts.warm_cache",
    "./scripts/look",
)
#: Commands of the pages' text that need nothing else, with their exit status.
IN_THE_TEXT = (
    ("python3 -m relay --check", 2),
    ("production/bin/python -m relay --check", 2),
    ("production/bin/python -m relay.delivery --check", 2),
    ("production/bin/python -m relay.web --check", 2),
    ("production/bin/opensend-relay --version", 0),
    ("printf 'From: me@example.com\\nTo: you@example.com\\n\\nHello\\n' > mail.eml", 0),
    ("production/bin/python -m relay.mail mail.eml", 0),
    ('./scripts/try_clients -k "sends and Python"', 0),
    ("./scripts/audit --help", 0),
    ("./scripts/bench --help", 0),
    ("./scripts/fuzz --help", 0),
    ("./scripts/soak --help", 0),
    ("./scripts/mutants --help", 0),
)


class Shell:
    """A plain user's shell with nothing activated, in a folder that at first holds only a bundle of the repository."""

    def __init__(self, home: Path, root: Path | None) -> None:
        """`home`: the user's folder. `root`: the folder that the shell takes for the whole machine; None: none."""
        self._root = root
        self.home = str(Path("/") / home.relative_to(root) if root else home)
        self.clone = f"{self.home}/opensend-relay"

    def start(self, command: str, folder: str | None = None) -> subprocess.Popen[str]:
        """Starts a command; its output and errors come together."""
        environment = {"HOME": self.home, "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        line = [
            "env",
            "-i",
            f"--chdir={folder or self.clone}",
            *(f"{name}={value}" for name, value in environment.items()),
        ]
        line += ["sh", "-c", command]
        if self._root:
            enter = (
                'mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc"'
                f' && exec chroot --userspec={_NOBODY}:{_NOBODY} "$0" "$@"'
            )
            line = ["unshare", "--mount", "sh", "-c", enter, str(self._root), *line]
        return subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def run(self, command: str, folder: str | None = None) -> tuple[int, str]:
        """The exit status and the output of a command."""
        with self.start(command, folder) as process:
            stuck = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
            stuck.start()
            output = process.stdout.read() if process.stdout else ""
            stuck.cancel()
        return process.returncode, output


def main(arguments: list[str]) -> int:
    """The exit status: 1 if a command ended otherwise than it should."""
    parser = argparse.ArgumentParser(
        prog="./scripts/try_install", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="folder with a whole Debian")
    options = parser.parse_args(arguments)
    if options.root is not None and os.geteuid() != 0:
        print("--root needs root, for chroot", file=sys.stderr)
        return 2
    with _home(options.root) as shell:
        return _walk(shell)


@contextlib.contextmanager
def _home(root: Path | None) -> Iterator[Shell]:
    if root is not None:
        root = root.resolve()
    home = Path(tempfile.mkdtemp(prefix="try-install-", dir=root / "tmp" if root else None))
    try:
        bundle = home / "opensend-relay.bundle"
        git = ["git", "-C", str(ROOT)]
        branch = subprocess.run([*git, "branch", "--show-current"], capture_output=True, text=True, check=True).stdout
        subprocess.run([*git, "bundle", "create", "--quiet", str(bundle), "HEAD", *branch.split()], check=True)
        if root is not None:
            for path in (home, bundle):
                os.chown(path, _NOBODY, _NOBODY)
        yield Shell(home, root)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _walk(shell: Shell) -> int:
    failed = not _step(
        shell,
        "git clone --quiet --config advice.detachedHead=false opensend-relay.bundle opensend-relay",
        folder=shell.home,
    )
    done: set[str] = set()
    for page in PAGES:
        print(f"\n== {page}", flush=True)
        for line in commands((ROOT / page).read_text("utf-8")):
            if line in done:
                print(f"$ {line}\n  run above", flush=True)
                continue
            done.add(line)
            failed |= not _known(shell, line)
    print("\n== in the text", flush=True)
    for command, status in IN_THE_TEXT:
        failed |= not _step(shell, command, status=status)
    return int(failed)


def commands(page: str) -> list[str]:
    """The commands of a page's blocks, without comments; scripts, which begin with #!, are left out."""
    found: list[str] = []
    for block in _BLOCK.findall(page):
        if block.startswith("#!"):
            continue
        command = ""
        for line in block.splitlines():
            command += re.sub(r"(^|\s+)#\s.*", "", line) + "\n"
            if command.strip() and _complete(command):
                found.append(command.strip())
                command = ""
    return found


def _complete(command: str) -> bool:
    """Whether a shell would wait for no further line."""
    document = re.search(r"<<'(\w+)'", command)
    if document:
        return command.endswith(f"\n{document[1]}\n")
    if command.endswith("\\\n"):
        return False
    return subprocess.run(["sh", "-n", "-c", command], stderr=subprocess.DEVNULL, check=False).returncode == 0


def step_for(command: str) -> Step | None:
    """What is done for a command; None: it is not known here."""
    if command.startswith(".venv/bin/"):
        return Step(command, command.replace(".venv/", "production/"), _TRIAL)
    return next((step for step in STEPS if command.startswith(step.begins)), None)


def _known(shell: Shell, command: str) -> bool:
    step = step_for(command)
    if step is None:
        print(f"$ {command}\n  NOT RUN: scripts/try_install.py does not know it", flush=True)
        return True
    if not step.instead:
        print(f"$ {command}\n  not run: {step.reason}", flush=True)
        return True
    if step.reason:
        print(f"$ {command}\n  in its place, since {step.reason}:", flush=True)
    return _serve(shell, step.instead) if step.serves else _step(shell, step.instead, status=step.status)


def _step(shell: Shell, command: str, *, folder: str | None = None, status: int = 0) -> bool:
    began = time.monotonic()
    print(f"$ {command}", flush=True)
    ended, output = shell.run(command, folder)
    _show(output, f"exit status {ended}, {time.monotonic() - began:.0f} s")
    return ended == status


def _serve(shell: Shell, command: str) -> bool:
    """Starts a command that runs until Ctrl-C, and pastes the lines that it offers for that."""
    print(f"$ {command}", flush=True)
    output, right, pasted = "", True, 0
    with shell.start(f"exec {command}") as process:
        stuck = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
        stuck.start()
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            if line.startswith(("printf ", "python3 -c ")):
                program = "curl" if line.startswith("printf ") else "python3"
                if shell.run(f"command -v {program}")[0]:
                    print(f"  not run: the line for {program}, which is not installed", flush=True)
                else:
                    pasted += 1
                    right &= _step(shell, line.strip())
            if "Ctrl-C" in line:
                for inside in WHILE_SERVING:
                    right &= _step(shell, inside)
                os.killpg(process.pid, signal.SIGINT)
        stuck.cancel()
    _show(output, f"exit status {process.returncode} after Ctrl-C")
    return right and pasted > 0 and process.returncode == 0


def _show(output: str, end: str) -> None:
    lines = [line for line in output.splitlines() if line.strip()]
    for line in lines[-_SHOWN:]:
        print(f"  | {line[:200]}")
    print(f"  {end}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
