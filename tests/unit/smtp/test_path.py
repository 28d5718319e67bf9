"""Paths and parameters, as a table and against hypothesis."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.smtp.path import Path, parse_path


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        ("<a@b.example>", Path("a", "b.example", {})),
        (" <a@b.example>", Path("a", "b.example", {})),
        ("\t<a@b.example>  ", Path("a", "b.example", {})),
        ("a@b.example", Path("a", "b.example", {})),
        ("< a@b.example >", Path("a", "b.example", {})),
        ("<>", Path("", "", {})),
        ("< >", Path("", "", {})),
        ("<postmaster>", Path("postmaster", "", {})),
        ("<@relay.example:a@b.example>", Path("a", "b.example", {})),
        ("<@one.example,@two.example:a@b.example>", Path("a", "b.example", {})),
        ('<"a b"@c.example>', Path("a b", "c.example", {})),
        ('<"a\\"b\\\\c"@d.example>', Path('a"b\\c', "d.example", {})),
        ('<"@"@b.example>', Path("@", "b.example", {})),
        ('<">"@b.example>', Path(">", "b.example", {})),
        ("<a@[192.0.2.1]>", Path("a", "[192.0.2.1]", {})),
        ("<ü@bücher.example>", Path("ü", "bücher.example", {})),
        ("<a+b.c=d/e!f#g@h.example>", Path("a+b.c=d/e!f#g", "h.example", {})),
        ("<a@b.example> SIZE=10", Path("a", "b.example", {"SIZE": "10"})),
        ("a@b.example SIZE=10", Path("a", "b.example", {"SIZE": "10"})),
        (
            "<a@b.example>\tsize=10  Body=8bitMIME SMTPUTF8",
            Path("a", "b.example", {"SIZE": "10", "BODY": "8bitMIME", "SMTPUTF8": ""}),
        ),
        ("<> AUTH=<>", Path("", "", {"AUTH": "<>"})),
        ("<a@b.example> X=1=2", Path("a", "b.example", {"X": "1=2"})),
    ],
)
def test_paths(argument: str, path: Path) -> None:
    assert parse_path(argument) == path
    assert path.null is (argument.replace(" ", "") in ("<>", "<>AUTH=<>"))


@pytest.mark.parametrize(
    "argument",
    [
        "",
        " ",
        "<",
        ">",
        "<a@b.example",
        "a@b.example>",
        "<<a@b.example>>",
        "<a@b.example>>",
        "<a b@c.example>",
        "<a@b example>",
        "<a@b@c.example>",
        "<@b.example>",
        "@b.example",
        "<a@b.example>SIZE=10",
        "<a@b.example>,<c@d.example>",
        "<a@b.example> <c@d.example>",
        "Name <a@b.example>",
        '<"a@b.example>',
        '<a"b"@c.example>',
        '<"a"b@c.example>',
        "<a,b@c.example>",
        "<a:b@c.example>",
        "<a@b.example> =10",
        "<a@b.example> SIZE=1 SIZE=2",
        "<a@b.example> SIZE=1 size=1",
        "<a@b.example> -X",
        "<a@b.example>\u00a0SIZE=1",
        "<a\u2003@b.example>",
    ],
)
def test_what_is_no_path(argument: str) -> None:
    assert parse_path(argument) is None


ATOM = st.text(st.sampled_from("abcXYZ019.!#$%&'*+-/=?^_`{|}~ü漢"), min_size=1, max_size=20)
DOMAIN = st.text(st.sampled_from("abcXYZ019.-ü"), min_size=1, max_size=20)


@given(ATOM, DOMAIN, st.booleans(), st.booleans())
def test_what_was_written_is_read(local: str, domain: str, brackets: bool, parameter: bool) -> None:
    address = f"{local}@{domain}"
    argument = (f"<{address}>" if brackets else address) + (" BODY=7BIT" if parameter else "")
    assert parse_path(argument) == Path(local, domain, {"BODY": "7BIT"} if parameter else {})


@given(st.text(min_size=0, max_size=30), DOMAIN)
def test_quoted_local_parts(local: str, domain: str) -> None:
    quoted = local.replace("\\", "\\\\").replace('"', '\\"')
    path = parse_path(f'<"{quoted}"@{domain}>')
    assert path is None if "\n" in local and path is None else path == Path(local, domain, {})


@settings(max_examples=1000)
@given(st.text(st.sampled_from('<>@:;,."\\ \t=abS()[]ü\u00a0'), max_size=40))
def test_anything_is_a_path_or_none(argument: str) -> None:
    path = parse_path(argument)
    if path is not None:
        assert not set(path.domain) & set('<>@" \t')
        assert all(keyword and keyword == keyword.upper() for keyword in path.parameters)


@pytest.mark.parametrize(
    ("begin", "repeated", "end"),
    [
        ("", " ", "x@"),
        ("<", " ", "@"),
        ("<a@b", " ", "x"),
        ("<@", "a", ">"),
        ("<@", "a,@", ">"),
        ('<"', "\\a", ""),
        ('<"', "a", ""),
        ("<", "a.", "("),
        ("<a@", "b.", "@"),
        ("<a@b>", " a", "="),
        ("<a@b>", " ", "="),
        ("<", "<", ""),
        ("", "@", ""),
        ("<a@b> X=", "=", " ="),
    ],
)
def test_time_in_proportion_to_length(begin: str, repeated: str, end: str) -> None:
    """A hundred times the longest line: what is quadratic in it would take minutes."""
    argument = begin + repeated * (400_000 // len(repeated)) + end
    began = time.process_time()
    parse_path(argument)
    assert time.process_time() - began < 2
