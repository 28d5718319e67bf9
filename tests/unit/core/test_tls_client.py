"""The certificate of another server is judged alike by every client here, and with every version of Python.

The defaults of `ssl.create_default_context` differ: from Python 3.13 on it refuses what it took before, and takes what
it refused. Each client meets both kinds of certificate under both kinds of defaults, whichever Python runs the tests.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config.settings import Settings
from relay.aws.https import HttpsClient
from relay.aws.sns_host import SnsHost
from relay.core.tls_client import client_context
from relay.delivery.outbound_http import Outbound
from relay.delivery.smart_host import SmartHost
from relay.redis.endpoint import Endpoint

RELAY = Path(__file__).resolve().parents[3] / "relay"
SNS = "sns.us-east-1.amazonaws.com"
LATER = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
#: What makes a context for a client, alone or on the way.
MAKERS = frozenset(
    (
        "create_default_context",
        "_create_default_https_context",
        "_create_unverified_context",
        "_create_stdlib_context",
        "create_urllib3_context",
        "PROTOCOL_TLS_CLIENT",
        "PROTOCOL_TLS",
        "HTTPSConnection",
        "SMTP_SSL",
    )
)


@dataclass(frozen=True)
class Authority:
    """Issues certificates. `faulty`: without the key identifiers of RFC 5280, as private authorities often are."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def issue(name: str, issuer: Authority | None, *, authority: bool, faulty: bool) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, signer_key = (issuer.certificate.subject, issuer.key) if issuer else (subject, key)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if authority:
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
    else:
        names = [x509.DNSName("localhost"), x509.DNSName(SNS), x509.DNSName("x.example")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if not faulty:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key())
        builder = builder.add_extension(identifier, critical=False)
    return Authority(name, key, builder.sign(signer_key, hashes.SHA256()))


@dataclass(frozen=True)
class Trusted:
    """A server, and the file of authorities that its clients are given."""

    port: int
    cafile: str
    #: How the handshakes ended, as the server saw it. With TLS 1.3 it ends well after the client has verified.
    outcomes: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)


@contextlib.contextmanager
def serving(folder: Path, chain: list[Authority], trusted: bytes) -> Iterator[Trusted]:
    """A server that closes each connection after the handshake."""
    chain_path, key_path, cafile = folder / "chain.pem", folder / "key.pem", folder / "trusted.pem"
    chain_path.write_bytes(b"".join(part.pem for part in chain))
    key_path.write_bytes(
        chain[0].key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    cafile.write_bytes(trusted)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(chain_path, key_path)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Trusted(listening.getsockname()[1], str(cafile))

    def serve() -> None:
        while True:
            sock, _ = listening.accept()
            with sock:
                sock.settimeout(20)
                if sock.recv(1, socket.MSG_PEEK) == b"":
                    return
                try:
                    context.wrap_socket(sock, server_side=True).close()
                    server.outcomes.put("verified")
                except OSError as error:
                    server.outcomes.put(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        socket.create_connection(("127.0.0.1", server.port)).close()
        thread.join(20)
        listening.close()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trusted]:
    """The root is trusted. Its certificates lack key identifiers: refused by default from Python 3.13 on."""
    root = issue("Private root", None, authority=True, faulty=True)
    leaf = issue("server", root, authority=False, faulty=True)
    with serving(tmp_path_factory.mktemp("faulty"), [leaf], root.pem) as server:
        yield server


@pytest.fixture(scope="module")
def without_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trusted]:
    """The intermediate authority is trusted, the root is unknown: refused by default before Python 3.13."""
    root = issue("Root", None, authority=True, faulty=False)
    middle = issue("Intermediate", root, authority=True, faulty=False)
    leaf = issue("server", middle, authority=False, faulty=False)
    with serving(tmp_path_factory.mktemp("without_root"), [leaf, middle], middle.pem) as server:
        yield server


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trusted]:
    """Another root of the same name is trusted."""
    root, another = (issue("Root", None, authority=True, faulty=False) for _ in range(2))
    leaf = issue("server", root, authority=False, faulty=False)
    with serving(tmp_path_factory.mktemp("unknown"), [leaf, root], another.pem) as server:
        yield server


def by_https(server: Trusted) -> None:
    HttpsClient(
        f"https://localhost:{server.port}/", cafile=server.cafile, connect_seconds=20.0, call_seconds=20.0
    ).post(b"", {})


def by_sns_host(server: Trusted) -> None:
    SnsHost(server.cafile, ("127.0.0.1", server.port)).get(f"https://{SNS}/x.pem")


def by_smart_host(server: Trusted) -> None:
    settings = Settings(
        database_url="postgres://nobody@127.0.0.1:1/none",
        smarthost_host="localhost",
        smarthost_port=server.port,
        smarthost_tls="implicit",
        smarthost_ca_path=server.cafile,
    )
    SmartHost(settings).open(time.monotonic() + 20)


def by_outbound(server: Trusted) -> None:
    """Trusts what the system trusts, which OpenSSL reads where SSL_CERT_FILE says."""
    outbound = Outbound(is_routable=lambda _: True, resolve=lambda _host, _port: ["127.0.0.1"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SSL_CERT_FILE", server.cafile)
        patched.setenv("SSL_CERT_DIR", os.path.dirname(server.cafile))
        outbound.request(
            "POST", f"https://x.example:{server.port}/", {}, b"", receive=lambda _status, _octets: True, seconds=20.0
        )


def by_redis(server: Trusted) -> None:
    url = f"rediss://localhost:{server.port}/0?ssl_ca_certs={server.cafile}"
    Endpoint(url, verify_tls=True, timeout=20.0).connection().connect()


CLIENTS = (by_https, by_sns_host, by_smart_host, by_outbound, by_redis)


@pytest.fixture(params=("before 3.13", "from 3.13 on"))
def _defaults(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ssl.create_default_context` as it is in an earlier or a later Python than the one that runs the test."""
    create = ssl.create_default_context

    def with_defaults(*arguments: object, **options: object) -> ssl.SSLContext:
        context = create(*arguments, **options)  # type: ignore[arg-type]
        context.verify_flags &= ~LATER
        if request.param == "from 3.13 on":
            context.verify_flags |= LATER
        return context

    monkeypatch.setattr(ssl, "create_default_context", with_defaults)


def outcome(server: Trusted, client: Callable[[Trusted], None]) -> str:
    """How the handshake of one connection ended. That nothing is answered after it is no matter."""
    with contextlib.suppress(Exception):
        client(server)
    return server.outcomes.get(timeout=20)


@pytest.mark.usefixtures("_defaults")
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_judges_alike_with_each_python(
    client: Callable[[Trusted], None], faulty: Trusted, without_root: Trusted, unknown: Trusted
) -> None:
    assert outcome(faulty, client) == "verified"
    assert outcome(without_root, client) == "verified"
    assert "UNKNOWN_CA" in outcome(unknown, client)


@pytest.mark.usefixtures("_defaults")
def test_certificate_and_name_are_verified() -> None:
    context = client_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_flags & LATER == ssl.VERIFY_X509_PARTIAL_CHAIN


def test_no_other_module_makes_a_context_for_a_client() -> None:
    """Otherwise the version of Python decides. `certificate` asks for dates only, `health` verifies nothing."""
    makers = {
        f"{path.relative_to(RELAY)}: {name}"
        for path in RELAY.rglob("*.py")
        for name in re.findall(r"\w+", path.read_text("utf-8"))
        if name in MAKERS
    }
    assert makers == {
        "core/tls_client.py: create_default_context",
        "operator/health.py: _create_unverified_context",
        "server/certificate.py: PROTOCOL_TLS_CLIENT",
    }
