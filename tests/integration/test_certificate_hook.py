"""`docs/certificates/deploy-hook`, run as certbot and acme.sh run it: the relay shows the renewed certificate."""

from __future__ import annotations

import os
import shutil
import smtplib
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.services import free_port
from tests.support.certificates import write_pair
from tests.support.relay_process import Relay
from tests.support.service_process import eventually

HOOK = Path(__file__).resolve().parents[2] / "docs" / "certificates" / "deploy-hook"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the hook; `reload` is what it calls at its end."""

    def run(*arguments: str, reload: str = "true", **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "OPENSEND_TLS_FOLDER": str(tmp_path / "tls"),
            "OPENSEND_TLS_GROUP": str(os.getegid()),
            "OPENSEND_TLS_RELOAD": reload,
        }
        return subprocess.run(
            [str(HOOK), *arguments], env=environment | variables, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def relay(tmp_path: Path, run: Run) -> Iterator[Relay]:
    """With the pair that the hook brought first."""
    run(*write_pair(tmp_path / "first"))
    settings = {
        "DATABASE_URL": f"postgres://nobody@127.0.0.1:{free_port()}/none",
        "SMTP_RELAY_TLS_CERT_PATH": str(tmp_path / "tls" / "cert.pem"),
        "SMTP_RELAY_TLS_KEY_PATH": str(tmp_path / "tls" / "key.pem"),
    }
    with Relay(tmp_path / "relay", settings) as relay:
        yield relay


def shown(relay: Relay) -> str:
    """The certificate that a client sees, as PEM."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with smtplib.SMTP(relay.host, relay.port, "client.example", timeout=60) as client:
        client.starttls(context=context)
        assert isinstance(client.sock, ssl.SSLSocket)
        return ssl.DER_cert_to_PEM_cert(client.sock.getpeercert(binary_form=True) or b"")


def lineage(folder: Path) -> Path:
    """A folder as certbot has it for a certificate."""
    chain, key = write_pair(folder / "made")
    shutil.copy(chain, folder / "fullchain.pem")
    shutil.copy(key, folder / "privkey.pem")
    return folder


def test_a_renewed_certificate_is_shown_at_once(relay: Relay, run: Run, tmp_path: Path) -> None:
    renewed = lineage(tmp_path / "renewed")
    assert shown(relay) == (tmp_path / "tls" / "cert.pem").read_text()
    ended = run(reload=f"kill -HUP {relay.pid}", RENEWED_LINEAGE=str(renewed))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    eventually("the renewed certificate", lambda: shown(relay) == (renewed / "fullchain.pem").read_text())
    for name in ("cert.pem", "key.pem"):
        assert stat.S_IMODE((tmp_path / "tls" / name).stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o750
    assert sorted(path.name for path in (tmp_path / "tls").iterdir()) == ["cert.pem", "key.pem"]


def test_the_key_is_never_open_to_others(run: Run, tmp_path: Path) -> None:
    """Whatever the mask of the program that runs it, and whatever was there before."""
    (tmp_path / "tls").mkdir(mode=0o777)
    (tmp_path / "tls" / "key.pem").touch(mode=0o644)
    assert run(*write_pair(tmp_path / "pair")).returncode == 0
    assert stat.S_IMODE((tmp_path / "tls" / "key.pem").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o750


@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "three"]])
def test_without_a_pair_nothing_is_done(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert "RENEWED_LINEAGE" in ended.stderr
    assert not (tmp_path / "tls").exists()


def test_a_pair_that_is_not_there_leaves_the_old_one_and_reloads_nothing(run: Run, tmp_path: Path) -> None:
    chain, key = write_pair(tmp_path / "pair")
    assert run(chain, key).returncode == 0
    before = (tmp_path / "tls" / "key.pem").read_text()
    ended = run(str(tmp_path / "none"), key, reload=f"touch {tmp_path / 'reloaded'}")
    assert ended.returncode != 0
    assert not (tmp_path / "reloaded").exists()
    assert (tmp_path / "tls" / "key.pem").read_text() == before


def test_a_reload_that_fails_is_the_hooks_failure(run: Run, tmp_path: Path) -> None:
    assert run(*write_pair(tmp_path / "pair"), reload="false").returncode != 0
