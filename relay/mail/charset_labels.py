"""Charset labels of the WHATWG Encoding Standard and of IANA's registry, and Python's codec for each.

Made by `python -m scripts.charset_labels` of the list in tests/unit/mail/charset_registries.json; not edited by hand.
"""

from __future__ import annotations

from typing import Final

#: By label, in lower case; an empty codec is UTF-8, or says nothing about octets above 127.
CODECS: Final[dict[str, str]] = {
    label: codec
    for codec, labels in (
        (
            "",
            "ansi_x3.4-1968 ansi_x3.4-1986 ascii cesu-8 cp367 csascii cscesu-8 cscesu8 csunknown8bit csutf8 "
            "ibm367 iso-2022-cn iso-2022-cn-ext iso-ir-6 iso646-us iso_646.irv:1991 replacement "
            "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 unknown-8bit us us-ascii utf-8 utf8 x-unicode20utf8 "
            "x-user-defined",
        ),
        (
            "big5hkscs",
            "big5 big5-hkscs cn-big5 csbig5 csbig5hkscs x-x-big5",
        ),
        (
            "cp037",
            "cp037 csibm037 ebcdic-cp-ca ebcdic-cp-nl ebcdic-cp-us ebcdic-cp-wt ibm037",
        ),
        (
            "cp1026",
            "cp1026 csibm1026 ibm1026",
        ),
        (
            "cp1140",
            "ccsid01140 cp01140 csibm01140 ebcdic-us-37+euro ibm01140",
        ),
        (
            "cp1250",
            "cp1250 cswindows1250 cswindows31latin2 iso-8859-2-windows-latin-2 windows-1250 x-cp1250",
        ),
        (
            "cp1251",
            "cp1251 cswindows1251 windows-1251 x-cp1251",
        ),
        (
            "cp1252",
            "cp1252 cp819 csisolatin1 cswindows1252 cswindows30latin1 cswindows31latin1 ibm819 iso-8859-1 "
            "iso-8859-1-windows-3.0-latin-1 iso-8859-1-windows-3.1-latin-1 iso-ir-100 iso8859-1 iso88591 "
            "iso_8859-1 iso_8859-1:1987 l1 latin1 windows-1252 x-cp1252",
        ),
        (
            "cp1253",
            "cp1253 cswindows1253 windows-1253 x-cp1253",
        ),
        (
            "cp1254",
            "cp1254 csisolatin5 cswindows1254 cswindows31latin5 iso-8859-9 iso-8859-9-windows-latin-5 "
            "iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254",
        ),
        (
            "cp1255",
            "cp1255 cswindows1255 windows-1255 x-cp1255",
        ),
        (
            "cp1256",
            "cp1256 cswindows1256 windows-1256 x-cp1256",
        ),
        (
            "cp1257",
            "cp1257 cswindows1257 windows-1257 x-cp1257",
        ),
        (
            "cp1258",
            "cp1258 cswindows1258 windows-1258 x-cp1258",
        ),
        (
            "cp273",
            "cp273 csibm273 ibm273",
        ),
        (
            "cp424",
            "cp424 csibm424 ebcdic-cp-he ibm424",
        ),
        (
            "cp437",
            "437 cp437 cspc8codepage437 ibm437",
        ),
        (
            "cp500",
            "cp500 csibm500 ebcdic-cp-be ebcdic-cp-ch ibm500",
        ),
        (
            "cp775",
            "cp775 cspc775baltic ibm775",
        ),
        (
            "cp850",
            "850 cp850 cspc850multilingual ibm850",
        ),
        (
            "cp852",
            "852 cp852 cspcp852 ibm852",
        ),
        (
            "cp855",
            "855 cp855 csibm855 ibm855",
        ),
        (
            "cp857",
            "857 cp857 csibm857 ibm857",
        ),
        (
            "cp858",
            "ccsid00858 cp00858 csibm00858 ibm00858 pc-multilingual-850+euro",
        ),
        (
            "cp860",
            "860 cp860 csibm860 ibm860",
        ),
        (
            "cp861",
            "861 cp-is cp861 csibm861 ibm861",
        ),
        (
            "cp862",
            "862 cp862 cspc862latinhebrew ibm862",
        ),
        (
            "cp863",
            "863 cp863 csibm863 ibm863",
        ),
        (
            "cp864",
            "cp864 csibm864 ibm864",
        ),
        (
            "cp865",
            "865 cp865 csibm865 ibm865",
        ),
        (
            "cp866",
            "866 cp866 csibm866 ibm866",
        ),
        (
            "cp869",
            "869 cp-gr cp869 csibm869 ibm869",
        ),
        (
            "cp874",
            "cstis620 cswindows874 dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
        ),
        (
            "cp932",
            "csshiftjis cswindows31j ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
        ),
        (
            "cp949",
            "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 windows-949",
        ),
        (
            "euc_jp",
            "cp51932 cscp51932 cseucpkdfmtjapanese euc-jp extended_unix_code_packed_format_for_japanese x-euc-jp",
        ),
        (
            "gb18030",
            "chinese cp936 csgb18030 csgb2312 csgbk csiso58gb231280 gb18030 gb2312 gb_2312 gb_2312-80 gbk "
            "iso-ir-58 ms936 windows-936 x-gbk",
        ),
        (
            "hp-roman8",
            "cshproman8 hp-roman8 r8 roman8",
        ),
        (
            "hz",
            "hz-gb-2312",
        ),
        (
            "iso2022_jp",
            "cp50220 cscp50220 csiso2022jp csjisencoding iso-2022-jp jis_encoding",
        ),
        (
            "iso2022_jp_2",
            "csiso2022jp2 iso-2022-jp-2",
        ),
        (
            "iso2022_kr",
            "csiso2022kr iso-2022-kr",
        ),
        (
            "iso8859-10",
            "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 iso_8859-10:1992 l6 latin6",
        ),
        (
            "iso8859-13",
            "csiso885913 iso-8859-13 iso8859-13 iso885913",
        ),
        (
            "iso8859-14",
            "csiso885914 iso-8859-14 iso-celtic iso-ir-199 iso8859-14 iso885914 iso_8859-14 iso_8859-14:1998 l8 latin8",
        ),
        (
            "iso8859-15",
            "csiso885915 csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9 latin-9",
        ),
        (
            "iso8859-16",
            "csiso885916 iso-8859-16 iso-ir-226 iso_8859-16 iso_8859-16:2001 l10 latin10",
        ),
        (
            "iso8859-2",
            "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
        ),
        (
            "iso8859-3",
            "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
        ),
        (
            "iso8859-4",
            "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
        ),
        (
            "iso8859-5",
            "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988",
        ),
        (
            "iso8859-6",
            "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e "
            "iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6-e iso_8859-6-i iso_8859-6:1987",
        ),
        (
            "iso8859-7",
            "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 "
            "iso_8859-7 iso_8859-7:1987 sun_eu_greek",
        ),
        (
            "iso8859-8",
            "csiso88598e csiso88598i csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-8859-8-i iso-ir-138 "
            "iso8859-8 iso88598 iso_8859-8 iso_8859-8-e iso_8859-8-i iso_8859-8:1988 logical visual",
        ),
        (
            "koi8-r",
            "cskoi8r koi koi8 koi8-r koi8_r",
        ),
        (
            "koi8-u",
            "cskoi8u koi8-ru koi8-u",
        ),
        (
            "kz1048",
            "cskz1048 kz-1048 rk1048 strk1048-2002",
        ),
        (
            "mac-cyrillic",
            "x-mac-cyrillic x-mac-ukrainian",
        ),
        (
            "mac-roman",
            "csmacintosh mac macintosh x-mac-roman",
        ),
        (
            "ptcp154",
            "cp154 csptcp154 cyrillic-asian pt154 ptcp154",
        ),
        (
            "utf-16",
            "csunicode csutf16 iso-10646-ucs-2 ucs-2 unicode utf-16",
        ),
        (
            "utf-16-be",
            "csutf16be unicodefffe utf-16be",
        ),
        (
            "utf-16-le",
            "csutf16le unicodefeff utf-16le",
        ),
        (
            "utf-32",
            "csucs4 csutf32 iso-10646-ucs-4 utf-32",
        ),
        (
            "utf-32-be",
            "csutf32be utf-32be",
        ),
        (
            "utf-32-le",
            "csutf32le utf-32le",
        ),
        (
            "utf-7",
            "csunicode11utf7 csutf7 unicode-1-1-utf-7 utf-7",
        ),
    )
    for label in labels.split(" ")
}
