"""README and docs/configuration.md: settings and their defaults, paths that are named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
#: Defaults that depend on the machine, in words.
IN_WORDS = {
    "SMTP_RELAY_HOSTNAME": "the machine's name",
    "SMTP_RELAY_PACE_SHARES": "delivery processes",
    "SMTP_RELAY_SPOOL_DIR": "the system's",
}


def rows_of(page: str) -> dict[str, str]:
    """The rows of settings on a page: variables as they are written there, default."""
    return dict(re.findall(r"^\| ((?:`[A-Z0-9_]+`(?:, )?)+) \| ([^|]*) \|", page, re.MULTILINE))


def written(setting: dataclasses.Field[Any]) -> str:
    return ", ".join(f"`{variable}`" for variable in setting.metadata["source"].variables)


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
    variable = setting.metadata["source"].variables[0]
    assert rows_of(CONFIGURATION).get(written(setting)) == IN_WORDS.get(variable, shown(setting.default))


def test_the_table_names_no_setting_that_is_gone() -> None:
    assert rows_of(CONFIGURATION).keys() - {written(field) for field in dataclasses.fields(Settings)} == set()


def test_no_setting_is_in_two_groups() -> None:
    names = re.findall(r"^\| `([A-Z0-9_]+)`", CONFIGURATION, re.MULTILINE)
    assert len(names) == len(set(names))


def test_the_essential_settings_have_the_same_defaults_in_both_places() -> None:
    essential = rows_of(README)
    assert essential
    assert essential.items() <= rows_of(CONFIGURATION).items()


def test_the_paths_that_it_names_are_there() -> None:
    named = re.findall(r"`(?:\./)?((?:relay|config|tests|scripts|requirements|docs)/[\w./-]*)[` ]", README)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
