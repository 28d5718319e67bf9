"""docs/clients.md and what `./scripts/try_clients` runs of it are the same recipes; see try_recipes.py for the runs."""

from __future__ import annotations

import re

import pytest

from tests.clients.mail import Account
from tests.clients.recipes import AUTHORITIES, PAGE, RECIPES, ROOT, Place, Program, Recipe, SmartHost, sections

SECTIONS = sections()
TEXT = PAGE.read_text("utf-8")
#: Sections that no program here can run; the page says so.
NOT_RUN = {".NET", "go-mail", "A printer or scanner"}
PLACE = Place(Account(10025, "starttls", "os_live_key", "/authority.pem"), 10465)


def test_each_section_is_run_or_says_that_it_was_not() -> None:
    assert SECTIONS.keys() == {recipe.name for recipe in RECIPES} | NOT_RUN
    for name in NOT_RUN:
        assert "Not run." in TEXT.split(f"## {name}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_each_recipe_has_what_its_runner_reads(recipe: Recipe) -> None:
    section = SECTIONS[recipe.name]
    several = {"Laravel": 2, "Postfix": 2, "Exim": 3}
    assert len(section.blocks) == several.get(recipe.name, 1)
    assert section.shown, "the page does not say what the client shows for a wrong key"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_each_recipe_takes_host_port_key_and_tls_from_the_place(recipe: Recipe) -> None:
    given = "".join(SECTIONS[recipe.name].blocks)
    filled = PLACE.filled(given)
    assert "relay.example.com" in given
    assert "localhost" in filled
    assert re.search(r"\b(10025|10465)\b", filled)
    assert "OPENSEND_API_KEY" in given or "os_live_key" in filled
    assert not re.search(r"relay\.example|\b2587\b|\b2465\b|…", filled)
    if isinstance(recipe, SmartHost) or recipe.name == "msmtp":
        assert AUTHORITIES in given
        assert AUTHORITIES not in filled


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if isinstance(recipe, Program)], ids=lambda r: r.name)
def test_each_program_that_runs_a_recipe_is_there(recipe: Program) -> None:
    text = (ROOT / "tests" / "clients" / "recipes" / recipe.glue).read_text()
    assert ("\t// RECIPE\n" in text) == recipe.spliced
    assert not recipe.product or recipe.product in text


def test_the_table_of_runs_names_each_section() -> None:
    table = TEXT.split("| recipe | run with | not run |\n|---|---|---|\n")[1].split("\n\n")[0]
    named = [line.split("|")[1].strip() for line in table.splitlines()]
    assert named == list(SECTIONS)


def test_readme_has_the_same_recipe_for_python() -> None:
    assert SECTIONS["Python"].blocks[0] in (ROOT / "README.md").read_text()
