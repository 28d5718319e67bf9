"""A process that would agree to expensive key exchanges doesn't start, whatever it serves, and `--check` says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.services import free_port
from tests.support.certificates import write_pair

ROOT = Path(__file__).resolve().parents[3]
#: The first child of a master, where the groups can't be restricted.
PREPARE = """
import socket, sys
from relay.process import children
children.restrict_groups = lambda: None
from relay.process import {module}
{module}.prepare(socket.socketpair()[0])
"""
CHECK = """
from relay.operator import {module}
raise SystemExit({module}.main())
"""
SAID = "OpenSSL accepts TLS groups that cost too much CPU: "


def run(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    empty = directory / "openssl.cnf"
    empty.write_text("")
    certificate, key = write_pair(directory)
    settings = {
        "OPENSSL_CONF": str(empty),
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
        "SMTP_RELAY_HOST": "127.0.0.1",
        "SMTP_RELAY_PORT": str(free_port()),
        "SMTP_RELAY_HTTP_PORT": str(free_port()),
        "SMTP_RELAY_HTTP_TLS": "true",
        "SMTP_RELAY_TLS_CERT_PATH": certificate,
        "SMTP_RELAY_TLS_KEY_PATH": key,
    }
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | settings, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("module", ["children", "web_children"])
def test_no_process_starts_that_takes_expensive_groups(module: str, tmp_path: Path) -> None:
    ended = run(PREPARE.format(module=module), tmp_path)
    assert (ended.returncode, ended.stderr.startswith(SAID)) == (2, True), ended.stderr


@pytest.mark.parametrize("module", ["check", "web_check"])
def test_the_check_finds_them(module: str, tmp_path: Path) -> None:
    ended = run(CHECK.format(module=module), tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert f"FAIL  certificate  {SAID}" in ended.stdout
