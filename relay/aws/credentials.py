"""Credentials for AWS, found by boto3's own rules: environment, files, roles, programs, the machine's services.

boto3 waits for a program that the profile names (`credential_process`) as long as that runs, and keeps all that it
prints. Here it is ended when the caller gives up, and when it prints too much.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Final

import botocore.credentials

#: Octets that a program may print: four short texts in JSON.
_MAX_OUTPUT: Final = 65_536


class _Program(subprocess.Popen[bytes]):
    """A program whose output is asked for once. It ends with the question, and with it what it started."""

    def __init__(self, arguments: list[str], **_: object) -> None:
        # What it writes to standard error may hold anything, and would go into the text of an error.
        super().__init__(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def communicate(self, _input: bytes | None = None, _timeout: float | None = None) -> tuple[bytes, bytes]:
        """What it printed, and nothing. Raises ValueError where that is too much."""
        if self.stdout is None:
            raise AssertionError("made without a pipe")
        try:
            with self.stdout:
                printed = self.stdout.read(_MAX_OUTPUT + 1)
            if len(printed) > _MAX_OUTPUT:
                raise ValueError("a program for credentials printed too much")
            self.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait()
            raise
        return printed, b""


class _ProcessProvider(botocore.credentials.ProcessProvider):
    def __init__(
        self, profile_name: str, load_config: Callable[[], object], popen: Callable[..., object] = _Program
    ) -> None:
        super().__init__(profile_name, load_config, popen=popen)


def bound_programs() -> None:
    """Has boto3 ask programs for credentials as said above; there is no other way in for profiles that name others."""
    botocore.credentials.ProcessProvider = _ProcessProvider  # type: ignore[misc]
