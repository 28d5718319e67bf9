"""Octets that show what charset they are in, whatever label they come under."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.mail import charset

JAPANESE = "こんにちは、世界。表示テスト「ソース」"
#: Charsets in which a lead octet of UTF-8 is a whole letter, and two that have no text of one octet a character.
LABELS = ("iso-8859-1", "windows-1252", "koi8-r", "iso-8859-15", "gb2312", "shift_jis", "euc-kr", "utf-16", "utf-16le")


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("text", ["Jörg", "Привет, мир", JAPANESE, "plain"])
def test_a_byte_order_mark_goes_before_the_label(label: str, text: str) -> None:
    assert charset.decode(codecs.BOM_UTF8 + text.encode(), label).removeprefix("\ufeff") == text


@pytest.mark.parametrize("label", [*LABELS, "utf-16be", "unicode", "us-ascii", ""])
@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be"])
def test_the_marks_of_utf_16_go_before_the_label(label: str, name: str) -> None:
    assert charset.decode(f"\ufeffGrüße,\r\n{JAPANESE}".encode(name), label) == f"Grüße,\r\n{JAPANESE}"


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_in_the_order_of_its_nuls(name: str) -> None:
    octets = "Grüße aus Köln\n".encode(name)
    assert charset.decode(octets, "utf-16") == charset.decode(octets, name) == "Grüße aus Köln\n"
    assert charset.decode(JAPANESE.encode("utf-16-le"), "utf-16") == JAPANESE
    assert charset.decode("ここ".encode(name), name) == "ここ"


@pytest.mark.parametrize("label", ["utf-16", "utf-16le", "utf-16be", "unicode", "ucs-2"])
@pytest.mark.parametrize("text", ["hello world", "hello world!", "Grüße aus Köln", "<html>\n<p>Grüße</p></html>"])
def test_text_under_a_label_of_utf_16_may_be_none_of_it(label: str, text: str) -> None:
    assert charset.decode(text.encode(), label) == text


def test_a_text_of_utf_16_that_was_cut_keeps_what_is_whole() -> None:
    assert charset.decode("Grüße".encode("utf-16") + b"\n", "utf-16") == "Grüße"
    assert charset.decode("Grüße\U0001f600".encode("utf-16-le")[:-2], "utf-16le") == "Grüße"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), st.sampled_from(["utf-16-le", "utf-16-be"]))
def test_utf_16_with_a_mark_is_read_under_any_label(text: str, name: str) -> None:
    octets = ("\ufeff" + text).encode(name)
    assert charset.decode(octets, "utf-16") == text
    # Only a NUL tells it from two letters of a charset of one octet a character.
    assert b"\0" not in octets or charset.decode(octets, "iso-8859-2") == text


@given(st.binary(max_size=60), st.sampled_from([*LABELS, "utf-16be", "utf-32", "iso-2022-jp", "utf-7", ""]))
def test_nothing_raises_and_nothing_is_stored_that_postgres_refuses(octets: bytes, label: str) -> None:
    for prefix in (b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"\x1b$B"):
        text = charset.decode(prefix + octets, label)
        assert "\0" not in text
        assert text.encode().decode() == text


@pytest.mark.parametrize("label", ["iso-8859-1", "windows-1252", "utf-8", "us-ascii", "koi8-r", "shift_jis", "gb2312"])
def test_the_escapes_of_iso_2022_jp_go_before_the_label(label: str) -> None:
    assert charset.decode(f"Hi, {JAPANESE}\r\nbye".encode("iso2022_jp"), label) == f"Hi, {JAPANESE}\r\nbye"


def test_text_beside_the_escapes_is_in_its_declared_charset() -> None:
    assert charset.decode("мир ".encode("koi8-r") + "世界".encode("iso2022_jp"), "koi8-r") == "мир 世界"


@pytest.mark.parametrize("text", ["\x1b[1mbold\x1b[0m", "\x1b(Bplain", "a\x1bb"])
@pytest.mark.parametrize("label", ["iso-8859-1", "koi8-r"])
def test_other_escapes_are_none(text: str, label: str) -> None:
    assert charset.decode(text.encode(), label) == text
