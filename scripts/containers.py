"""Images and containers by what this machine has: docker, podman, or buildah as root, which needs no daemon.

A container here has the host's network, so that it reaches servers on 127.0.0.1; no other file system to write to than
/tmp; no capability; and the user that its image names.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("This is a part of ./scripts/try_container, and no command.")

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from scripts.services import processes

#: Seconds that a container may take to end after SIGTERM.
STOP_SECONDS: Final = 60

#: Of a base image.
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ContainerFailed(Exception):
    """Something can't be built or run. The text is one line."""


class Container(Protocol):
    """A running container."""

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command beside its first process, as its user."""

    def stop(self) -> int:
        """SIGTERM to its first process; that one's exit status. Raises ContainerFailed where it does not end."""

    def log(self) -> str:
        """What it wrote so far."""

    def remove(self) -> None:
        """Ends it by force, if it runs, and leaves nothing of it."""


class Engine(Protocol):
    """What builds images and runs them."""

    name: str

    def has(self, image: str) -> bool:
        """Whether an image is here, or could be pulled."""

    def import_base(self, name: str, archive: Path) -> None:
        """Makes an image of a root file system."""

    def build(self, folder: Path, image: str, arguments: Mapping[str, str]) -> None:
        """Builds the folder's Dockerfile."""

    def healthcheck(self, image: str) -> list[str]:
        """The command of the image's HEALTHCHECK."""

    def once(self, image: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in place of the image's own, to its end."""

    def start(self, image: str, arguments: Sequence[str], variables: Mapping[str, str], folder: Path) -> Container:
        """Runs the image's own command with arguments. `folder` is for what the engine itself has to keep."""


def run(*command: str, shown: bool = False) -> str:
    """The standard output of a command. `shown`: what it prints goes to our own output instead.

    Raises ContainerFailed with the last line of what it said.
    """
    output = None if shown else subprocess.PIPE
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True, check=False)
    if ended.returncode:
        said = (ended.stderr or ended.stdout or "see above").strip().splitlines()
        raise ContainerFailed(f"{' '.join(command[:3])}: {(said or ['it said nothing'])[-1]}")
    return ended.stdout or ""


def find_engine(name: str | None) -> Engine | None:
    """The first of docker, podman and buildah that works here, or the one of this name; None: there is none."""
    for each in ("docker", "podman"):
        if name in (None, each) and shutil.which(each):
            answered = subprocess.run([each, "info"], capture_output=True, check=False)
            if answered.returncode == 0:
                return DockerLike(each)
    tools = ("buildah", "unshare", "nsenter")
    if name in (None, "buildah") and os.geteuid() == 0 and all(map(shutil.which, tools)):
        return Buildah()
    return None


class DockerLike:
    """docker, or podman, which takes the same commands."""

    def __init__(self, name: str) -> None:
        self.name = name

    def has(self, image: str) -> bool:
        """See Engine."""
        here = subprocess.run([self.name, "image", "inspect", image], capture_output=True, check=False)
        return here.returncode == 0 or (
            subprocess.run([self.name, "pull", "--quiet", image], capture_output=True, check=False).returncode == 0
        )

    def import_base(self, name: str, archive: Path) -> None:
        """See Engine."""
        run(self.name, "import", f"--change=ENV PATH={_PATH}", str(archive), name)

    def build(self, folder: Path, image: str, arguments: Mapping[str, str]) -> None:
        """See Engine."""
        given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        # Images of the OCI have no HEALTHCHECK, and podman builds those by default.
        form = ["--format=docker"] if self.name == "podman" else []
        run(self.name, "build", *form, *given, "--tag", image, str(folder), shown=True)

    def healthcheck(self, image: str) -> list[str]:
        """See Engine."""
        (described,) = json.loads(run(self.name, "image", "inspect", image))
        # docker has it in the configuration, podman beside that.
        return _health_command({**described, **described["Config"]})

    def once(self, image: str, *command: str) -> subprocess.CompletedProcess[str]:
        """See Engine."""
        program, *arguments = command
        options = ["--rm", "--read-only", "--tmpfs=/tmp", f"--entrypoint={program}"]
        return subprocess.run(
            [self.name, "run", *options, image, *arguments], capture_output=True, text=True, check=False
        )

    def start(self, image: str, arguments: Sequence[str], variables: Mapping[str, str], folder: Path) -> Container:
        """See Engine."""
        closed = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        given = [f"--env={name}={value}" for name, value in variables.items()]
        made = run(self.name, "run", "--detach", "--network=host", *closed, *given, image, *arguments)
        return _DockerContainer(self.name, made.strip())


class _DockerContainer:
    def __init__(self, engine: str, identifier: str) -> None:
        self._engine = engine
        self._id = identifier

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self._engine, "exec", self._id, *command], capture_output=True, text=True, check=False)

    def stop(self) -> int:
        run(self._engine, "stop", f"--time={STOP_SECONDS}", self._id)
        return int(run(self._engine, "inspect", "--format={{.State.ExitCode}}", self._id))

    def log(self) -> str:
        ended = subprocess.run(
            [self._engine, "logs", self._id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return ended.stdout

    def remove(self) -> None:
        subprocess.run([self._engine, "rm", "--force", self._id], capture_output=True, check=False)


#: The first process of new namespaces: it makes of the image's tree what a container sees, and becomes the command.
_ENTER: Final = """\
set -eu
root=$1 user=$2 folder=$3 path=$PATH
shift 3
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" /usr/bin/env --chdir="$folder" PATH="$path" "$@"
"""


class Buildah:
    """buildah with `--isolation chroot`, as root. It runs no service, so the namespaces are made here."""

    name = "buildah"

    def has(self, image: str) -> bool:
        """See Engine."""
        return subprocess.run(["buildah", "pull", "--quiet", image], capture_output=True, check=False).returncode == 0

    def import_base(self, name: str, archive: Path) -> None:
        """See Engine."""
        container = run("buildah", "from", "scratch").strip()
        try:
            run("buildah", "add", container, str(archive), "/")
            run("buildah", "config", f"--env=PATH={_PATH}", container)
            run("buildah", "commit", container, name)
        finally:
            run("buildah", "rm", container)

    def build(self, folder: Path, image: str, arguments: Mapping[str, str]) -> None:
        """See Engine."""
        given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        options = ["--isolation=chroot", "--layers", "--format=docker", "--pull=false", *given, "--tag", image]
        run("buildah", "bud", *options, str(folder), shown=True)

    def healthcheck(self, image: str) -> list[str]:
        """See Engine."""
        return _health_command(self._inspect(image)["Docker"]["config"])

    def once(self, image: str, *command: str) -> subprocess.CompletedProcess[str]:
        """See Engine."""
        container = run("buildah", "from", "--pull-never", image).strip()
        try:
            return subprocess.run(
                ["buildah", "run", "--isolation=chroot", container, "--", *command],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            run("buildah", "rm", container)

    def start(self, image: str, arguments: Sequence[str], variables: Mapping[str, str], folder: Path) -> Container:
        """See Engine."""
        described = self._inspect(image)["OCIv1"]["config"]
        given = dict(each.split("=", 1) for each in described["Env"]) | dict(variables)
        command = [*described["Entrypoint"], *(arguments or described["Cmd"])]
        container = run("buildah", "from", "--pull-never", image).strip()
        root = run("buildah", "mount", container).strip()
        place = [root, described["User"], described["WorkingDir"]]
        return _Namespaces(container, [*place, *command], given, folder / f"{container}.log")

    def _inspect(self, image: str) -> Any:
        return json.loads(run("buildah", "inspect", "--type", "image", image))


class _Namespaces:
    """A process in its own namespaces of mounts and processes, where it is the first one."""

    def __init__(self, container: str, arguments: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self._container = container
        self._variables = dict(variables)
        self._user = arguments[1].split(":")
        self._log = log
        command = ["/bin/sh", "-c", _ENTER, "sh", *arguments]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [_found("unshare"), "--mount", "--pid", "--fork", "--kill-child", *command],
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        user, group = self._user
        options = ["--mount", "--pid", "--root", f"--setuid={user}", f"--setgid={group}"]
        return subprocess.run(
            [_found("nsenter"), f"--target={self._first()}", *options, "--", *command],
            env=self._variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def stop(self) -> int:
        os.kill(self._first(), signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ContainerFailed(f"a container did not end within {STOP_SECONDS} s of SIGTERM") from None

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def remove(self) -> None:
        self._process.kill()
        self._process.wait()
        subprocess.run(["buildah", "rm", self._container], capture_output=True, check=False)

    def _first(self) -> int:
        try:
            return processes.children(self._process.pid)[0].pid
        except IndexError:
            raise ContainerFailed(f"a container has ended: {(self.log().splitlines() or ['?'])[-1]}") from None


def _health_command(config: dict[str, Any]) -> list[str]:
    """Of a HEALTHCHECK in the form of a list. Raises ContainerFailed."""
    kind, *command = (config.get("Healthcheck") or {}).get("Test") or ["NONE"]
    if kind != "CMD":
        raise ContainerFailed("the image has no HEALTHCHECK in the form of a list")
    return [str(each) for each in command]


def _found(program: str) -> str:
    path = shutil.which(program)
    assert path is not None
    return path
