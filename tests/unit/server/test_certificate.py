"""The certificate: loaded strictly, renewed without a pause, never replaced by something worse."""

from __future__ import annotations

import os
import resource
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from relay.server import certificate
from relay.server.certificate import CertificateError, CertificateStore, expiry_warning
from tests.support.certificates import write_pair


def refusal(cert_path: str, key_path: str) -> str:
    with pytest.raises(CertificateError) as refused:
        CertificateStore(cert_path, key_path)
    text = str(refused.value)
    assert "\n" not in text
    return text


def served_name(store: CertificateStore, cert_path: str) -> str:
    """The name in the certificate that a client of this moment is shown; it trusts what is in `cert_path`."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_context.load_verify_locations(cert_path)
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(inward, outward)
    server = store.context.wrap_bio(outward, inward, server_side=True)
    for party in (client, server, client):
        try:
            party.do_handshake()
        except ssl.SSLWantReadError:
            continue
    certificate = client.getpeercert()
    assert certificate is not None
    return certificate["subjectAltName"][0][1]


def test_the_context_is_a_servers_of_today(tmp_path: Path) -> None:
    context = CertificateStore(*write_pair(tmp_path)).context
    assert context.protocol == ssl.PROTOCOL_TLS_SERVER
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    names = {cipher["name"] for cipher in context.get_ciphers()}
    assert names
    assert not [name for name in names if any(weak in name for weak in ("RC4", "DES", "MD5", "NULL", "EXP", "anon"))]


def test_no_session_ticket_is_issued(tmp_path: Path) -> None:
    assert CertificateStore(*write_pair(tmp_path)).context.num_tickets == 0


def test_a_reload_says_whether_the_pair_is_another(tmp_path: Path) -> None:
    store = CertificateStore(*write_pair(tmp_path))
    assert not store.reload()
    write_pair(tmp_path)
    assert store.reload()
    assert not store.reload()


def test_what_is_allowed_is_ours_to_say_and_not_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an operator's OpenSSL configuration allows anything."""

    def for_old_clients(protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.options &= ~(ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION)
        return context

    paths = write_pair(tmp_path)
    monkeypatch.setattr(certificate, "ssl", SimpleNamespace(**(vars(ssl) | {"SSLContext": for_old_clients})))
    context = CertificateStore(*paths).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_missing_files(tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path)
    assert refusal("/nowhere/c.pem", key_path).startswith(
        "SMTP_RELAY_TLS_CERT_PATH is '/nowhere/c.pem': should be a readable PEM file: no such file"
    )
    assert refusal(cert_path, "/nowhere/k.pem").startswith("SMTP_RELAY_TLS_KEY_PATH is '/nowhere/k.pem': should be a ")
    assert refusal(str(tmp_path), key_path).startswith("SMTP_RELAY_TLS_CERT_PATH is ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_key(tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path)
    Path(key_path).chmod(0)
    assert refusal(cert_path, key_path).endswith("permission denied")


def test_rubbish(tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path)
    rubbish = tmp_path / "rubbish.pem"
    for content in (
        b"",
        b"hello\n",
        b"-----BEGIN CERTIFICATE-----\nhello\n-----END CERTIFICATE-----\n",
        os.urandom(5000),
    ):
        rubbish.write_bytes(content)
        assert refusal(str(rubbish), key_path).startswith("SMTP_RELAY_TLS_CERT_PATH is ")
    rubbish.write_bytes(b"hello\n")
    assert refusal(cert_path, str(rubbish)).startswith("SMTP_RELAY_TLS_KEY_PATH is ")


def test_the_two_paths_swapped(tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path)
    assert "should be a PEM file with a certificate" in refusal(key_path, cert_path)


def test_the_key_of_another(tmp_path: Path) -> None:
    cert_path, _ = write_pair(tmp_path / "one")
    _, key_path = write_pair(tmp_path / "two")
    assert "it belongs to another" in refusal(cert_path, key_path)


def test_a_key_with_a_passphrase_does_not_wait_for_a_terminal(tmp_path: Path) -> None:
    text = refusal(*write_pair(tmp_path, passphrase=b"hunter2"))
    assert text.startswith("SMTP_RELAY_TLS_KEY_PATH is ")
    assert text.endswith("should be a key without a passphrase")


def test_an_expired_certificate_serves_with_a_complaint(tmp_path: Path) -> None:
    store = CertificateStore(*write_pair(tmp_path, days=-1, starts=-10))
    assert expiry_warning(store) == (
        f"SMTP_RELAY_TLS_CERT_PATH is {store.cert_path!r}: has expired, clients that verify it will not send"
    )


def test_dates_of_a_certificate_that_are_warned_of(tmp_path: Path) -> None:
    assert expiry_warning(CertificateStore(*write_pair(tmp_path / "good"))) is None
    soon = expiry_warning(CertificateStore(*write_pair(tmp_path / "soon", days=3.01)))
    assert soon is not None
    assert soon.endswith("expires in 3 days")
    early = expiry_warning(CertificateStore(*write_pair(tmp_path / "early", starts=1)))
    assert early is not None
    assert "is not valid yet" in early


def test_a_renewed_certificate_serves_the_next_connection(tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path, name="old.example")
    store = CertificateStore(cert_path, key_path)
    assert not store.changed()
    assert served_name(store, cert_path) == "old.example"
    write_pair(tmp_path, name="new.example")
    assert store.changed()
    store.reload()
    assert not store.changed()
    assert served_name(store, cert_path) == "new.example"


def test_a_renewal_by_renaming_is_seen(tmp_path: Path) -> None:
    """As certbot does it: the path is a symbolic link that moves on, or a file renamed over the old one."""
    store = CertificateStore(*write_pair(tmp_path))
    write_pair(tmp_path / "next")
    for name in ("certificate.pem", "key.pem"):
        old_status = (tmp_path / name).stat()
        os.utime(tmp_path / "next" / name, ns=(old_status.st_atime_ns, old_status.st_mtime_ns))
        (tmp_path / "next" / name).rename(tmp_path / name)
    assert store.changed()


def test_a_bad_new_pair_leaves_the_old_one_in_place(tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path, name="old.example")
    good = tmp_path / "good.pem"
    good.write_bytes(Path(cert_path).read_bytes())
    store = CertificateStore(cert_path, key_path)
    before = store.context
    new_cert, new_key = write_pair(tmp_path / "next", name="new.example")
    Path(cert_path).write_bytes(Path(new_cert).read_bytes())
    assert store.changed()
    with pytest.raises(CertificateError):
        store.reload()
    assert store.context is before
    assert served_name(store, str(good)) == "old.example"
    assert not store.changed(), "it was tried, and is not tried again until something changes"
    Path(key_path).write_bytes(Path(new_key).read_bytes())
    assert store.changed()
    store.reload()
    assert served_name(store, cert_path) == "new.example"


def test_a_vanished_file_is_an_error_once(tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path)
    store = CertificateStore(cert_path, key_path)
    Path(cert_path).unlink()
    assert store.changed()
    with pytest.raises(CertificateError):
        store.reload()
    assert not store.changed()


@pytest.fixture
def no_descriptors() -> Callable[[], AbstractContextManager[None]]:
    """Within its block no file can be opened, as at the bound of open files."""

    @contextmanager
    def without() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with open(os.devnull, "rb") as lowest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return without


def test_a_pair_that_could_not_be_read_for_a_passing_trouble_is_tried_again(
    tmp_path: Path, no_descriptors: Callable[[], AbstractContextManager[None]]
) -> None:
    """The files are not written again for that: the old certificate would be served until it expires."""
    store = CertificateStore(*write_pair(tmp_path))
    old = store.pair
    write_pair(tmp_path, name="renewed.example")
    with no_descriptors():
        for _ in range(2):
            assert store.changed()
            with pytest.raises(CertificateError):
                store.reload()
        assert store.pair == old
    assert store.changed()
    assert store.reload()
    assert not store.changed()


def test_whether_a_certificate_expires_is_unknown_without_descriptors(
    tmp_path: Path, no_descriptors: Callable[[], AbstractContextManager[None]]
) -> None:
    """It is asked when the certificate serves already: it must not end what asks."""
    store = CertificateStore(*write_pair(tmp_path))
    with no_descriptors():
        assert expiry_warning(store) is None


def test_a_file_that_becomes_readable_is_tried_again(tmp_path: Path) -> None:
    """Renewals write the key first and give it to the relay's user then, which changes no time of writing."""
    store = CertificateStore(*write_pair(tmp_path))
    assert not store.changed()
    os.chmod(store.key_path, 0o640)
    assert store.changed()
    assert not store.reload()
    assert not store.changed()
