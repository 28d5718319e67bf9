"""The properties that tests/fuzz checks, over inputs that hypothesis puts together from what clients send.

A fuzzer finds its way to them in minutes; built from sound parts and a little damage they are reached in seconds.
"""

from __future__ import annotations

from base64 import b64encode

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import dialogue, path, proxy, sasl

#: Damage: octets taken out, put in, or doubled.
DAMAGE = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from([b"", b"\0", b"=", b"\r", b"\n", b"\xff", b" ", b"AA"]))
)


def damaged(octets: bytes, damage: list[tuple[int, bytes]]) -> bytes:
    """`octets` with others in some places; nothing stands for one taken out."""
    for place, other in damage[:3]:
        at = place % (len(octets) + 1)
        octets = octets[:at] + (other + octets[at:] if other else octets[at + 1 :])
    return octets


# SASL: every part any octets at all, encoded soundly or nearly so

RESPONSES = (
    st.lists(st.binary(max_size=12), min_size=1, max_size=4).map(lambda parts: b64encode(b"\0".join(parts)))
    | st.sampled_from([b"", b"=", b"*", b"==", b"****"])
).filter(lambda line: b"\n" not in line)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([b"P", b"L"]), st.lists(RESPONSES, min_size=1, max_size=4), DAMAGE)
def test_an_exchange_comes_to_what_its_lines_say(mechanism: bytes, lines: list[bytes], damage: list) -> None:
    exchange = b"\n".join(lines)
    sasl.check(mechanism + exchange)
    sasl.check(mechanism + damaged(exchange, damage))


# Paths: what RFC 5321 allows, what clients send besides, and the same with damage

LOCAL = st.text("abc019.!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=8) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), max_size=8
).map(lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
LABEL = st.text("abcXYZ019-_", min_size=1, max_size=8) | st.text(
    st.characters(categories=["L", "M", "Nd"]), min_size=1, max_size=4
)
DOMAIN = st.lists(LABEL, min_size=1, max_size=4).map(".".join) | st.sampled_from(
    ["[192.0.2.1]", "xn--bcher-kva.example"]
)
ROUTE = st.sampled_from(["", "@relay.example:", "@one,@two:", " "])
PARAMETERS = st.lists(
    st.sampled_from(["SIZE=10", "body=8BITMIME", "SMTPUTF8", "AUTH=<>", "X=1=2", "-X", "=", "SIZE=1"]), max_size=3
)


@settings(max_examples=400, deadline=None)
@given(ROUTE, LOCAL, DOMAIN, st.booleans(), PARAMETERS, DAMAGE)
def test_a_path_survives_being_written_and_is_stored_in_one_form(
    route: str, local: str, domain: str, brackets: bool, parameters: list[str], damage: list
) -> None:
    mailbox = f"<{route}{local}@{domain}>" if brackets else f"{local}@{domain}"
    argument = " ".join((mailbox, *parameters)).encode()
    path.check(argument)
    path.check(damaged(argument, damage))


# PROXY headers with damage, cut anywhere


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(proxy.seeds())), DAMAGE, st.lists(st.integers(0, 255), max_size=7))
def test_a_damaged_header_is_read_to_its_end_or_refused(header: bytes, damage: list, sizes: list[int]) -> None:
    # Without the seed's own sizes of pieces.
    octets = header[1:] if header[0] == 0 else header[4:]
    proxy.check(bytes([len(sizes), *sizes]) + damaged(octets, damage))


# Dialogues: commands in any order, with damage, in any pieces


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 3),
    st.lists(st.integers(0, 255), max_size=7),
    st.lists(st.sampled_from(dialogue.TOKENS), max_size=20),
    DAMAGE,
)
def test_a_dialogue_of_any_commands_keeps_its_promises(
    options: int, sizes: list[int], commands: list[bytes], damage: list
) -> None:
    head = bytes([options, len(sizes), *sizes])
    login = dialogue.TOKENS[0] + dialogue.TOKENS[3]
    dialogue.check(head + b"".join(commands))
    dialogue.check(head + damaged(login + b"".join(commands), damage))
