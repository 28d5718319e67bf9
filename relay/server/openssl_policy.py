"""The key exchanges that OpenSSL agrees to in this process: set before anything has loaded OpenSSL's configuration.

A client chooses the group of a handshake, and a finite field of 8,192 bits costs the server seventy times the CPU of
X25519, while the client pays next to nothing. Python before 3.15 can restrict a context to one group, not to several;
so the groups are written in OpenSSL's own form (config(5)), which every context of the process starts from. What the
machine's configuration says besides (providers, policies) stays in force.

Imports `_ssl` instead of `ssl`, which must not be loaded before gevent has patched the standard library.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from relay.core.memory_file import memory_file

if TYPE_CHECKING:
    import ssl

_VARIABLE: Final = "OPENSSL_CONF"
#: Sections and names in them that lead from OpenSSL's configuration to what every TLS context starts from, each with
#: the name of the section that it leads to where the machine's configuration has none.
_STEPS: Final = (("openssl_conf", "relay_init"), ("ssl_conf", "relay_ssl"), ("system_default", "relay_tls"))
_SECTION: Final = re.compile(r"\s*\[\s*([^\]\s]+)\s*\]")
_DEFAULT_SECTION: Final = "default"
#: Files that one file may include, one in another.
_DEEPEST_INCLUDE: Final = 8

#: TLS code points (IANA's "TLS Supported Groups") of the groups that are meant to be there.
GROUPS: Final = {0x001D: "X25519", 0x0017: "P-256", 0x0018: "P-384", 0x11EC: "X25519MLKEM768"}
#: Those that must not be: what a handshake costs the server is many times what it costs with the groups above.
DEAR_GROUPS: Final = {
    0x0100: "ffdhe2048",
    0x0101: "ffdhe3072",
    0x0102: "ffdhe4096",
    0x0103: "ffdhe6144",
    0x0104: "ffdhe8192",
    0x0019: "P-521",
    0x001B: "brainpoolP384r1",
    0x001C: "brainpoolP512r1",
    0x001E: "X448",
    0x0020: "brainpoolP384r1tls13",
    0x0021: "brainpoolP512r1tls13",
}


def groups_of(version: tuple[int, ...]) -> str:
    """The groups in OpenSSL's notation, best first, for a version as `ssl.OPENSSL_VERSION_INFO` has it.

    One unknown name makes OpenSSL 3.0 ignore the whole list without a word, and newer ones refuse every context. From
    3.5 on there is the post-quantum hybrid, a question mark lets OpenSSL leave out a name that it doesn't know (X25519,
    where only FIPS algorithms are allowed), and an asterisk marks groups for which a client sends a key at once.
    """
    if version[:2] >= (3, 5):
        return "?*X25519MLKEM768:?*X25519:P-256:P-384"
    return "X25519:P-256:P-384"


def restrict_groups() -> None:
    """Restricts every TLS context of this process from now on, for servers and clients.

    Has an effect only while nothing has loaded OpenSSL's configuration in this process (`ssl` and `hashlib` may), so it
    comes before all other imports; `accepted`: whether it had one. Other copies of OpenSSL in the process
    (psycopg2-binary has one) still read the machine's configuration. Raises OSError where OpenSSL takes no context
    with this configuration.
    """
    import _ssl  # noqa: PLC0415 - loads the library

    given = os.environ.get(_VARIABLE)
    machines = given or str(Path(_ssl.get_default_verify_paths()[1]).parent / "openssl.cnf")
    with memory_file(_configuration(machines, groups_of(_ssl.OPENSSL_VERSION_INFO)).encode()) as path:
        os.environ[_VARIABLE] = path
        try:
            # The first context makes OpenSSL read its configuration, once in a process.
            _ssl._SSLContext(_ssl.PROTOCOL_TLS_SERVER)
        finally:
            if given is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = given


def _configuration(machines: str, groups: str) -> str:
    """A configuration that includes the machine's and has the groups in the section that TLS contexts start from."""
    sections: dict[str, dict[str, str]] = {}
    readable = _read(Path(machines), sections, _DEFAULT_SECTION, _DEEPEST_INCLUDE) is not None
    lines = [f".include {machines}"] if readable else []
    section = _DEFAULT_SECTION
    for name, ours in _STEPS:
        following = sections.get(section, {}).get(name, ours)
        lines += [f"[{section}]", f"{name} = {following}"]
        section = following
    return "\n".join([*lines, f"[{section}]", f"Groups = {groups}", ""])


def _read(path: Path, sections: dict[str, dict[str, str]], section: str, depth: int) -> str | None:
    """Collects what a configuration says, with what it includes; the section that its end is in.

    None where it can't be read. Takes the forms that name sections; OpenSSL itself reads all others.
    """
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return None
    for line in text.splitlines():
        content = line.partition("#")[0].strip()
        header = _SECTION.match(content)
        if header:
            section = header[1]
        elif content.startswith(".include") and depth:
            section = _include(Path(content.removeprefix(".include").strip(" \t=\"'")), sections, section, depth)
        elif "=" in content:
            name, _, value = content.partition("=")
            sections.setdefault(section, {})[name.strip()] = value.strip().strip("\"'")
    return section


def _include(path: Path, sections: dict[str, dict[str, str]], section: str, depth: int) -> str:
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError:
        return section
    for file in files:
        if file == path or file.suffix in (".cnf", ".conf"):
            section = _read(file, sections, section, depth - 1) or section
    return section


def accepted(context: ssl.SSLContext, group: int) -> bool:
    """Whether a server with this context shakes hands with a client of TLS 1.3 that knows this group alone.

    Asked in memory, with a ClientHello that offers the group without a key: a side that takes the group asks for one,
    at no cost (RFC 8446 section 4.1.4).
    """
    import ssl  # noqa: PLC0415 - not before gevent's patches

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(_client_hello(group))
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    try:
        server.do_handshake()
    except ssl.SSLWantReadError:
        return True
    except ssl.SSLError:
        return False
    raise AssertionError("a handshake of one message")


def expensive_groups(context: ssl.SSLContext) -> list[str]:
    """The names of expensive groups that a server with this context takes all the same."""
    return [name for group, name in DEAR_GROUPS.items() if accepted(context, group)]


def _client_hello(group: int) -> bytes:
    """RFC 8446 section 4.1.2, in its record (section 5.1)."""
    extensions = b"".join(
        (
            _extension(43, b"\x02\x03\x04"),  # supported_versions: TLS 1.3
            _extension(10, b"\x00\x02" + group.to_bytes(2, "big")),  # supported_groups
            # signature_algorithms: ECDSA with each curve, Ed25519, Ed448, RSA-PSS
            _extension(13, bytes.fromhex("0016 0403 0503 0603 0807 0808 0804 0805 0806 0809 080a 080b")),
            _extension(51, b"\x00\x00"),  # key_share: none
        )
    )
    body = (
        b"\x03\x03"
        + os.urandom(32)
        + b"\x00"  # no session
        + b"\x00\x06\x13\x01\x13\x02\x13\x03"  # AES-128-GCM, AES-256-GCM, ChaCha20-Poly1305
        + b"\x01\x00"  # no compression
        + len(extensions).to_bytes(2, "big")
        + extensions
    )
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content
