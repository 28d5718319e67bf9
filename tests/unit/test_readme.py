"""The README is checked where it can be: settings and their defaults, paths that it names."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
#: Defaults that depend on the machine, in words.
IN_WORDS = {
    "SMTP_RELAY_HOSTNAME": "the machine's name",
    "SMTP_RELAY_PACE_SHARES": "delivery processes",
    "SMTP_RELAY_SPOOL_DIR": "the system's",
}


def documented() -> dict[str, str]:
    return dict(re.findall(r"^\| ((?:`[A-Z0-9_]+`(?:, )?)+) \| ([^|]*) \|", README, re.MULTILINE))


def shown(default: Any) -> str:
    match default:
        case dataclasses._MISSING_TYPE():
            return "required"
        case None:
            return "none"
        case bool():
            return str(default).lower()
        case float():
            return f"{default:g}"
        case _:
            return str(default)


@pytest.mark.parametrize("setting", dataclasses.fields(Settings), ids=lambda setting: setting.name)
def test_every_setting_is_in_the_table_with_its_default(setting: dataclasses.Field[Any]) -> None:
    variables = setting.metadata["source"].variables
    default = documented().get(", ".join(f"`{variable}`" for variable in variables))
    assert default == IN_WORDS.get(variables[0], shown(setting.default))


def test_the_table_names_no_setting_that_is_gone() -> None:
    known = {
        ", ".join(f"`{name}`" for name in field.metadata["source"].variables) for field in dataclasses.fields(Settings)
    }
    assert documented().keys() - known == set()


def test_the_paths_that_it_names_are_there() -> None:
    named = re.findall(r"`(?:\./)?((?:relay|config|tests|scripts|requirements|docs)/[\w./-]*)[` ]", README)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
