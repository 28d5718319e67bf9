"""The one form in which addresses are stored, compared and looked up."""

from __future__ import annotations

import email.utils
from email.utils import getaddresses
from typing import Any

import idna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.address import MAX_ADDRESS_LENGTH, BadAddress, comparison_form, domain_of, normalise, normalise_domain
from relay.smtp.path import parse_path


@pytest.mark.parametrize(
    ("local", "domain", "address"),
    [
        ("bo", "reader.example", "bo@reader.example"),
        ("Bo", "READER.Example", "Bo@reader.example"),
        ("bo", "reader.example.", "bo@reader.example"),
        ("bo", "käse.example", "bo@xn--kse-qla.example"),
        ("bo", "BÜCHER.example", "bo@xn--bcher-kva.example"),
        ("bo", "xn--kse-qla.example", "bo@xn--kse-qla.example"),
        ("bo", "faß.example", "bo@xn--fa-hia.example"),
        ("bo", "localhost", "bo@localhost"),
        ("bo", "under_score.example", "bo@under_score.example"),
        ("bo dahl", "reader.example", '"bo dahl"@reader.example'),
        ('a"b\\c', "reader.example", '"a\\"b\\\\c"@reader.example'),
        ("a..b", "reader.example", '"a..b"@reader.example'),
        ("o'neil+tag/x=y", "reader.example", "o'neil+tag/x=y@reader.example"),
    ],
)
def test_stored_form(local: str, domain: str, address: str) -> None:
    assert normalise(local, domain) == address


@pytest.mark.parametrize(
    ("local", "domain"),
    [
        ("", "reader.example"),
        ("bo", ""),
        ("bo", "."),
        ("bo", ".example"),
        ("bo", "reader..example"),
        ("bo", "reader.example.."),
        ("bo", "-"),
        ("bo", "[192.0.2.1]"),
        ("bo", "reader example"),
        ("bo", "l" * 64 + ".example"),
        ("bo", ("l" * 60 + ".") * 5 + "example"),
        ("b\no", "reader.example"),
        ("b\0o", "reader.example"),
        ("x" * 500, "reader.example"),
    ],
)
def test_what_mail_cannot_be_sent_to(local: str, domain: str) -> None:
    with pytest.raises(BadAddress) as caught:
        normalise(local, domain)
    assert not caught.value.utf8_local_part


def test_a_local_part_that_is_not_ascii_has_a_separate_fault() -> None:
    with pytest.raises(BadAddress) as caught:
        normalise("jörg", "reader.example")
    assert caught.value.utf8_local_part
    assert normalise("jörg", "käse.example", allow_utf8_local_part=True) == "jörg@xn--kse-qla.example"
    with pytest.raises(BadAddress):
        normalise("j\udc80", "reader.example", allow_utf8_local_part=True)


def test_longest_address_fits_the_column() -> None:
    domain = "reader.example"
    assert len(normalise("x" * (MAX_ADDRESS_LENGTH - len(domain) - 1), domain)) == MAX_ADDRESS_LENGTH


def test_domain_and_comparison_form() -> None:
    assert domain_of('"a@b"@reader.example') == "reader.example"
    assert normalise_domain("Reader.EXAMPLE.") == "reader.example"
    assert comparison_form(" Bo@Reader.Example ") == "bo@reader.example"


@pytest.mark.parametrize(
    "domain",
    [
        "\u6f22" * 64 + ".example",
        "a." + "\u6f22" * 250,
        "\u6f22\u3002" * 130,
        "e\u0301" * 64 + ".example",
        "\u6f22\uff0e" + "\u5b57" * 100_000,
        "a\u0301\u0323" * 100_000,
    ],
)
def test_what_is_too_long_for_a_domain_is_refused_before_it_is_converted(
    domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(idna, "encode")
    with pytest.raises(BadAddress):
        normalise_domain(domain)


def test_a_label_is_measured_in_its_composed_form() -> None:
    # 40 syllables of Hangul, three characters each before they are composed.
    assert normalise_domain("\u1112\u1161\u11ab" * 40 + ".example").startswith("xn--")
    assert normalise_domain("b\u00fc" * 20 + "\uff61example") == normalise_domain("bu\u0308" * 20 + ".example")


@pytest.mark.parametrize(
    ("local", "address"),
    [
        ("jörg", "jörg@d.example"),
        ("jörg.müller+x", "jörg.müller+x@d.example"),
        ("é <gone@x.example>", '"é <gone@x.example>"@d.example'),
        ("é,gone@x.example", '"é,gone@x.example"@d.example'),
        ("é gone", '"é gone"@d.example'),
        ("é..x", '"é..x"@d.example'),
        ('é"x\\y', '"é\\"x\\\\y"@d.example'),
    ],
)
def test_a_local_part_in_utf_8_is_quoted_where_the_grammar_needs_it(local: str, address: str) -> None:
    assert normalise(local, "d.example", allow_utf8_local_part=True) == address


@pytest.mark.parametrize(
    "local", ["é\u2028x", "é\u202ex", "é\u00a0x", "é\uff20gone", "é\uff0cgone", "é\ufe64x\ufe65", "é,\uff02x"]
)
def test_a_local_part_that_may_be_read_as_another_is_no_address(local: str) -> None:
    with pytest.raises(BadAddress) as caught:
        normalise(local, "d.example", allow_utf8_local_part=True)
    assert not caught.value.utf8_local_part


_CHARACTERS = st.text(st.sampled_from("aé漢.\"\\ <>@,;:()[]'\uff20\u3000"), min_size=1, max_size=12)


#: The strict reading of later versions, and of what distributions took from them, takes no bracket even in quotes.
_LENIENT: dict[str, Any] = {"strict": False} if hasattr(email.utils, "supports_strict_parsing") else {}


@settings(max_examples=600)
@given(_CHARACTERS)
def test_any_parser_reads_a_stored_address_as_the_one_that_was_judged(local: str) -> None:
    try:
        address = normalise(local, "d.example", allow_utf8_local_part=True)
    except BadAddress:
        return
    assert domain_of(address) == "d.example"
    # Another parser, and our own: one address, and this one.
    assert [found for _, found in getaddresses([address], **_LENIENT) if found] == [address]
    (path,) = [parse_path(f"<{address}>")]
    assert path is not None
    assert normalise(path.local, path.domain, allow_utf8_local_part=True) == address
