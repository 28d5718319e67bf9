"""Charsets: labels of the registries, text that declares none, and text that declares a wrong one."""

from __future__ import annotations

import codecs
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.mail import charset, charset_labels, parameters, parse
from scripts import charset_labels as generator

_REGISTRIES = json.loads(Path(__file__).with_name("charset_registries.json").read_text(encoding="utf-8"))
#: Encodings of the WHATWG standard and a codec that decodes their text, for those whose name Python has not.
_OTHER_NAMES = {
    "iso-8859-8-i": "iso8859-8",
    "macintosh": "mac-roman",
    "x-mac-cyrillic": "mac-cyrillic",
    "windows-874": "cp874",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
}
_SAMPLES = {
    "ibm866": "Привет",
    "iso-8859-2": "Dzień",
    "iso-8859-3": "Ħħ",
    "iso-8859-4": "Ķķ",
    "iso-8859-5": "Привет",
    "iso-8859-6": "مرحبا",
    "iso-8859-7": "Καλη",
    "iso-8859-8": "שלום",
    "iso-8859-8-i": "שלום",
    "iso-8859-10": "Ðđ",
    "iso-8859-13": "Ąž",
    "iso-8859-14": "Ŵŷ",
    "iso-8859-15": "Œ€",
    "iso-8859-16": "Șț",
    "koi8-r": "Привет",
    "koi8-u": "Їжак",
    "macintosh": "Größe",
    "windows-874": "สวัสดี",
    "windows-1250": "Dzień",
    "windows-1251": "Привет",
    "windows-1252": "€ Größe",
    "windows-1253": "Καλη",
    "windows-1254": "ığş",
    "windows-1255": "שלום",
    "windows-1256": "مرحبا",
    "windows-1257": "Ąž",
    "windows-1258": "Đđ",
    "x-mac-cyrillic": "Ґанок",
    "gbk": "订单镕",
    "gb18030": "订单㐀",
    "big5": "許功蓋",
    "euc-jp": "山田",
    "iso-2022-jp": "山田",
    "shift_jis": "山田①",
    "euc-kr": "똠한국어",
    "utf-16be": "Grüße",
    "utf-16le": "Grüße",
}
_ASCII = {"ascii", "us-ascii", "ansi_x3.4-1968"}


@pytest.mark.parametrize("encoding", sorted(_SAMPLES))
def test_every_label_of_the_standard_decodes_its_text(encoding: str) -> None:
    text = _SAMPLES[encoding]
    codec = _OTHER_NAMES.get(encoding, encoding)
    for label in set(_REGISTRIES["whatwg"][encoding]) - _ASCII:
        for spelling in (label, label.upper(), f'"{label}"', f" {label} "):
            assert charset.decode(text.encode(codec), spelling) == text, label


def test_every_encoding_of_the_standard_has_a_sample() -> None:
    assert set(_REGISTRIES["whatwg"]) == {*_SAMPLES, "utf-8", "replacement", "x-user-defined"}


def test_every_alias_of_the_registry_means_the_same() -> None:
    for name, aliases in _REGISTRIES["iana"].items():
        assert len({charset.codec(label) for label in (name, *aliases)} - {None}) <= 1, name
        for label in (name, *aliases):
            assert label.lower() in charset_labels.CODECS
    for codec in charset_labels.CODECS.values():
        assert not codec or codecs.lookup(codec)


def test_the_module_of_labels_is_what_the_list_makes_it() -> None:
    assert generator.labels() == charset_labels.CODECS


@pytest.mark.parametrize(
    ("label", "codec"),
    [
        ("win1251", "cp1251"),
        ("x-cp-1251", "cp1251"),
        ("8859-2", "iso8859-2"),
        ("ISO_8859_5", "iso8859-5"),
        ("iso 8859-15", "iso8859-15"),
        ("x-iso8859-1", "cp1252"),
        ("rot13", None),
        ("unicode_escape", None),
        ("a" * 1_000_000, None),
        ("x" + "\0" * 30, None),
    ],
)
def test_spellings_of_no_registry(label: str, codec: str | None) -> None:
    assert charset.codec(label) == codec


_UNDECLARED = {
    "cp932": ["山田太郎", "表示", "テスト", "株式会社ソニー 営業部", "予約確認のお知らせ", "申込"],
    "gb18030": ["订单已发货", "张三", "您好", "北京分公司", "会议纪要", "亲爱的客户:您的订单已发货。"],
    "big5": ["王小明", "訂單確認", "功能許可證", "許功蓋", "親愛的客戶:您的訂單已出貨"],
    "cp949": ["안녕하세요", "주문 확인"],
    "euc_jp": ["こんにちは", "テスト"],
    "iso2022_jp": ["山田太郎", "テストです。\nabc\n二行目", "a 山 b 田 c"],
    "iso2022_jp_1": ["日本語 <x@y.example>"],
    "cp1252": ["Jörg Müller", "café", "Große Grüße aus Köln", "ÄÖÜß", "ÀÉÈÊ", "“Hi” – it’s", "Élève à l'école", "FÜßE"],
}


@pytest.mark.parametrize(("codec", "text"), [(codec, text) for codec, texts in _UNDECLARED.items() for text in texts])
@pytest.mark.parametrize("label", ["", "us-ascii", "unknown-8bit", "x-unknown", "utf-8"])
def test_text_without_a_charset_is_what_it_shows_itself_to_be(codec: str, text: str, label: str) -> None:
    octets = text.encode(codec)
    assert charset.decode(octets, label) == text
    view = charset.utf_8_view(octets.decode("latin-1"), label)
    assert view.encode("latin-1").decode("utf-8") == text.replace("\n", " ")


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\x1b")))
def test_text_that_is_utf_8_stays_it(text: str) -> None:
    octets = text.encode("utf-8")
    assert charset.decode(octets) == text
    assert charset.utf_8_view(octets.decode("latin-1"), "shift_jis") == octets.decode("latin-1")


@given(st.lists(st.sampled_from("日本語表能ソ十テスト山田太郎") | st.sampled_from('ab @<>()",;:\\'), min_size=1))
def test_escaped_japanese_text_is_read_wherever_it_stands(characters: list[str]) -> None:
    text = "".join(characters)
    octets = text.encode("iso2022_jp")
    assert charset.decode(octets) == text
    view = charset.utf_8_view(octets.decode("latin-1"))
    assert view.encode("latin-1").decode("utf-8") == text


def test_encoded_words_keep_their_octets() -> None:
    view = '=?koi8-r?Q?\xf0\xd2?= \x1b$B;3\x1b(B =?utf-8?B?YQ==?= "'
    assert charset.utf_8_view(view) == f'=?koi8-r?Q?\xf0\xd2?= {"山".encode().decode("latin-1")} =?utf-8?B?YQ==?= "'


def test_escapes_beside_other_octets() -> None:
    assert charset.decode("é\n".encode() + b"\x1b$B;3EDB@O:\x1b(B\nK\xc3\xb6ln") == "é\n山田太郎\nKöln"
    assert charset.decode(b"\x1b$B;3EDB@O:\nabc") == "山田太郎\nabc"
    # An escape that begins nothing stays as it stands.
    assert charset.decode(b"\x1b[31mred\x1b[0m") == "\x1b[31mred\x1b[0m"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Dzień dobry, łączymy", "iso-8859-2"),
        ("Grüße für Köln", "iso-8859-1"),
        ("Größe, Füße", "latin1"),
        ("Привет", "iso-8859-5"),
        ("ğüşİ ÖĞ", "iso-8859-9"),
        ("Größe, Füße", "windows-1252"),
    ],
)
def test_utf_8_under_a_label_of_one_octet_a_character(text: str, label: str) -> None:
    octets = text.encode("utf-8")
    expected = text if label != "windows-1252" else octets.decode("cp1252")
    assert charset.decode(octets, label) == expected


def test_text_in_its_declared_charset_stays_in_it() -> None:
    assert charset.decode("Köln für 5 €".encode("cp1252"), "iso-8859-1") == "Köln für 5 €"
    assert charset.decode("łÄ".encode("iso-8859-2"), "iso-8859-2") == "łÄ"
    # One character alone is too little to say more than the label does.
    assert charset.decode("ń".encode(), "iso-8859-2") == "Ĺ\x84"


@pytest.mark.parametrize("name", ["予定表", "機能", "開発ソ", "申込表.pdf"])
@pytest.mark.parametrize("codec", ["cp932"])
def test_a_file_name_whose_last_octet_is_a_backslash_has_no_quote(name: str, codec: str) -> None:
    octets = name.replace('"', '\\"').encode(codec)
    for rest in (b"", b"; size=3", b" ; size=3"):
        view = (b'attachment; filename="' + octets + b'"' + rest).decode("latin-1")
        assert parameters.parse(view).texts["filename"] == name


def test_a_character_alone_ends_its_file_name_without_a_quote() -> None:
    view = 'attachment; filename="\x95\\"; size=3'
    assert parameters.parse(view).texts == {"filename": "•\\", "size": "3"}


def test_a_raw_file_name_is_in_the_charset_that_the_message_declares() -> None:
    head = b"From: a@b.example\r\nContent-Type: multipart/mixed; boundary=cut\r\n\r\n--cut\r\n"
    for codec, text, name in (
        ("koi8-r", "Привет", "счёт.pdf"),
        ("shift_jis", "山田", "表.pdf"),
        ("cp1250", "ł", "żółw.pdf"),
    ):
        body = b"Content-Type: text/plain; charset=" + codec.encode() + b"\r\n\r\n" + text.encode(codec)
        for fields in (b'application/pdf\r\nContent-Disposition: attachment; filename="', b'application/pdf; name="'):
            part = b"\r\n--cut\r\nContent-Type: " + fields + name.encode(codec) + b'"\r\n\r\nx\r\n--cut--'
            (attached,) = parse(head + body + part).attachments
            assert attached.filename == name


def test_a_file_name_in_big5_or_gbk() -> None:
    for name, codec in (("成功許", "big5"), ("会议纪要乗", "gbk"), ("訂單功", "big5")):
        view = (b'attachment; filename="' + name.encode(codec) + b'"').decode("latin-1")
        assert parameters.parse(view).texts["filename"] == name


def test_a_boundary_keeps_its_octets() -> None:
    view = "multipart/mixed; boundary=\x83\x65\x83\x58\x83\x67"
    assert parameters.parse(view).views["boundary"] == "\x83\x65\x83\x58\x83\x67"


def test_a_body_without_a_charset() -> None:
    head = b"From: a@b.example\r\nMIME-Version: 1.0\r\nContent-Type: text/plain;\r\n\r\n"
    for codec, text in (
        ("iso2022_jp", "テストメールです。"),
        ("cp932", "予約確認のお知らせ"),
        ("gbk", "您的订单已发货"),
    ):
        assert parse(head + text.encode(codec)).text == text


@pytest.mark.parametrize(
    "unit", [b"\x1b$B", b"\x1b(B", b"\x1b$B;3\x1b(B", b"\x1b$B;3\n", b"\xe4", b"\x83\x65", b"\x1b"]
)
def test_no_detection_takes_longer_than_its_length(unit: bytes) -> None:
    started = time.process_time()
    charset.decode(unit * (1_000_000 // len(unit)))
    charset.utf_8_view((unit * (1_000_000 // len(unit))).decode("latin-1"))
    assert time.process_time() - started < 10
