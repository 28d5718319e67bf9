"""Whatever spelling a suppression is stored in, a look-up asks for it, and it stands for its mailbox."""

from __future__ import annotations

from unicodedata import normalize

import idna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.address import BadAddress, comparison_form, normalise
from relay.core.spellings import mailbox_of, spellings

#: Letters of several scripts, such as registries allow in one label.
LABELS = st.one_of(
    st.text("abcxyz019", min_size=1, max_size=8),
    st.text("aüößéçñ", min_size=1, max_size=6),
    st.text("пример", min_size=1, max_size=8),
    st.text("例え食事", min_size=1, max_size=4),
)
LOCALS = st.one_of(st.text("abz09+._-", min_size=1, max_size=12), st.text('ab "\\@<>,', min_size=1, max_size=8))


def stored_forms(local: str, labels: list[str]) -> list[str]:
    """What a person or a program may have written into the table: trimmed and lower case, as the contract has it."""
    domains = [
        ".".join(labels),
        normalize("NFD", ".".join(labels)),
        ".".join(idna.encode(label, uts46=True).decode() for label in labels),
        ".".join([idna.encode(labels[0], uts46=True).decode(), *labels[1:]]),
        "\u3002".join(labels) if not "".join(labels).isascii() else ".".join(labels),
    ]
    return [f"{local}@{domain}{stop}".lower() for domain in domains for stop in ("", ".")]


@given(LOCALS, st.lists(LABELS, min_size=2, max_size=3))
def test_each_stored_form_is_asked_for(local: str, labels: list[str]) -> None:
    try:
        mailbox = comparison_form(normalise(local, ".".join(labels)))
    except (BadAddress, idna.IDNAError):
        return
    asked = spellings(mailbox)
    local_part = mailbox.rpartition("@")[0]
    for stored in stored_forms(local_part, [idna.decode(label) for label in mailbox.rpartition("@")[2].split(".")]):
        assert stored in asked
        assert mailbox_of(stored) == mailbox
    assert asked[0] == mailbox
    assert len(set(asked)) == len(asked)


@given(LOCALS, st.lists(LABELS, min_size=1, max_size=3))
def test_no_form_stands_for_another_mailbox(local: str, labels: list[str]) -> None:
    try:
        mailbox = comparison_form(normalise(local, ".".join(labels)))
    except BadAddress:
        return
    assert {mailbox_of(spelling) for spelling in spellings(mailbox)} == {mailbox}


@pytest.mark.parametrize("count", [1, 4, 20])
def test_the_number_of_forms_is_bounded(count: int) -> None:
    assert len(spellings("a@" + ".".join(["xn--bcher-kva"] * count) + ".example")) <= 27 * 11


@given(st.text())
def test_no_stored_text_is_too_odd(text: str) -> None:
    assert mailbox_of(mailbox_of(text)) == mailbox_of(text)
