"""What a machine needs for other people's servers."""

from __future__ import annotations

import os
import pwd
import shutil


def lacking(name: str, program: str, user: str) -> str:
    """What it lacks for a server; empty if nothing. `user`: whom the server's process, or its queue, belongs to."""
    if shutil.which(program) is None:
        return f"{name} is not installed ({program} is not in PATH)"
    if os.geteuid() != 0:
        return f"{name} needs root"
    try:
        pwd.getpwnam(user)
    except KeyError:
        return f"there is no user {user}"
    return ""
