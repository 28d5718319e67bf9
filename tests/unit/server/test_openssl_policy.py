"""Which key exchanges a server of ours agrees to. OpenSSL reads its configuration once: each case is a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from relay.server import openssl_policy
from tests.support.certificates import write_pair

ROOT = Path(__file__).resolve().parent.parent.parent.parent

#: Every code point that a client can name. 65,536 handshakes in memory take a second.
ACCEPTED_GROUPS = """
import sys
from relay.server import openssl_policy
if sys.argv[3] == "restricted":
    openssl_policy.restrict_groups()
import ssl
from relay.server.certificate import CertificateStore
context = CertificateStore(sys.argv[1], sys.argv[2]).context
print(*(group for group in range(65536) if openssl_policy.accepted(context, group)))
print(*openssl_policy.expensive_groups(context))
print(*(cipher["name"] for cipher in context.get_ciphers()))
"""


def run(code: str, *arguments: str, **variables: str) -> list[list[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return [line.split(" ") if line else [] for line in ended.stdout.splitlines()]


def test_of_all_groups_that_a_client_can_name_only_the_cheap_are_taken(tmp_path: Path) -> None:
    groups, dear, _ = run(ACCEPTED_GROUPS, *write_pair(tmp_path), "restricted")
    assert dear == []
    assert {0x001D, 0x0017, 0x0018} <= set(map(int, groups)) <= set(openssl_policy.GROUPS)


def test_without_the_configuration_expensive_groups_are_found(tmp_path: Path) -> None:
    """The look that the start depends on: it must not say that all is well where it isn't."""
    empty = tmp_path / "openssl.cnf"
    empty.write_text("")
    groups, dear, _ = run(ACCEPTED_GROUPS, *write_pair(tmp_path), "as it is", OPENSSL_CONF=str(empty))
    assert 0x0100 in map(int, groups)
    assert "ffdhe2048" in dear
    assert {int(group) for group in groups} - set(openssl_policy.GROUPS) <= set(openssl_policy.DEAR_GROUPS)


def test_ciphers_are_ephemeral_on_curves_and_authenticated(tmp_path: Path) -> None:
    *_, names = run(ACCEPTED_GROUPS, *write_pair(tmp_path), "restricted")
    assert names
    assert all(name.startswith(("TLS_", "ECDHE-")) for name in names)
    assert all("GCM" in name or "CHACHA20" in name for name in names)


MACHINES = {
    "nothing": "",
    "no TLS": "openssl_conf = init\n[init]\nproviders = some\n[some]\ndefault = on\n[on]\nactivate = 1\n",
    "dear groups": (
        "openssl_conf = init\n[init]\nssl_conf = modules\n[modules]\nsystem_default = policy\n"
        "[policy]\nGroups = ffdhe8192:X25519\nMinProtocol = TLSv1.2\n"
    ),
    "quoted and spaced": (
        "openssl_conf=\"init\" # first\n[ init ]\nssl_conf = 'modules'\n[ modules ]\nsystem_default=policy\n"
        "[ policy ]\nCurves = ffdhe2048\n"
    ),
    "included": "openssl_conf = init\n.include {directory}/rest.cnf\n",
    "included directory": "openssl_conf = init\n.include = {directory}/conf.d\n",
}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_the_machine_says_stays_but_for_the_groups(tmp_path: Path, machine: str) -> None:
    rest = "[init]\nssl_conf = modules\n[modules]\nsystem_default = policy\n[policy]\nGroups = ffdhe8192\n"
    (tmp_path / "conf.d").mkdir()
    for path in (tmp_path / "rest.cnf", tmp_path / "conf.d" / "a.conf"):
        path.write_text(rest)
    given = tmp_path / "openssl.cnf"
    given.write_text(MACHINES[machine].format(directory=tmp_path))
    groups, dear, _ = run(ACCEPTED_GROUPS, *write_pair(tmp_path / "pair"), "restricted", OPENSSL_CONF=str(given))
    assert dear == []
    assert {0x001D, 0x0017, 0x0018} <= set(map(int, groups)) <= set(openssl_policy.GROUPS)


def test_a_policy_of_the_machine_is_obeyed(tmp_path: Path) -> None:
    given = tmp_path / "openssl.cnf"
    given.write_text(
        "openssl_conf = init\n[init]\nssl_conf = modules\n[modules]\nsystem_default = policy\n"
        "[policy]\nCiphersuites = TLS_AES_256_GCM_SHA384\n"
    )
    *_, names = run(ACCEPTED_GROUPS, *write_pair(tmp_path / "pair"), "restricted", OPENSSL_CONF=str(given))
    assert [name for name in names if name.startswith("TLS_")] == ["TLS_AES_256_GCM_SHA384"]


def test_others_find_the_environment_as_it_was() -> None:
    """psycopg2 brings a separate OpenSSL, and programs that are started may use any."""
    code = """
import os
from relay.server import openssl_policy
openssl_policy.restrict_groups()
print(os.environ.get("OPENSSL_CONF", "none"))
"""
    assert run(code, OPENSSL_CONF="/dev/null") == [["/dev/null"]]
    without = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**without, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True
    )
    assert ended.stdout == b"none\n"


def test_nothing_that_gevent_has_to_patch_first_is_loaded() -> None:
    code = """
import sys
from relay.server import openssl_policy
openssl_policy.restrict_groups()
print(*({"ssl", "socket", "threading", "select", "hashlib"} & set(sys.modules)))
"""
    assert run(code) == [[]]


@pytest.mark.parametrize(
    ("version", "hybrid"), [((3, 0, 0), False), ((3, 2, 1), False), ((3, 4, 0), False), ((3, 5, 0), True)]
)
def test_a_name_that_a_version_does_not_know_is_not_said_to_it(version: tuple[int, ...], hybrid: bool) -> None:
    assert ("X25519MLKEM768" in openssl_policy.groups_of(version)) == hybrid
    assert ("?" in openssl_policy.groups_of(version)) == hybrid
