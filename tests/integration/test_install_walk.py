"""What `./scripts/try_install` makes of the pages: every command of their blocks, whole, and what is done with it."""

from __future__ import annotations

from scripts.try_install import PAGES, ROOT, commands, step_for

PAGE = """
```sh
#!/bin/sh
echo a script is no command
```
```sh
cd /opt   # a comment
docker run \\
  image
printf 'a' |
  cat
for unit in a b; do
  echo $unit
done
cat >> file <<'END'
NAME=it's
END
```
"""


def test_commands_are_whole() -> None:
    assert commands(PAGE) == [
        "cd /opt",
        "docker run \\\n  image",
        "printf 'a' |\n  cat",
        "for unit in a b; do\n  echo $unit\ndone",
        "cat >> file <<'END'\nNAME=it's\nEND",
    ]


def test_each_command_of_the_pages_is_run_or_has_a_reason() -> None:
    found = [command for page in PAGES for command in commands((ROOT / page).read_text("utf-8"))]
    assert "./scripts/dev" in found
    for command in found:
        step = step_for(command)
        assert step is not None, f"scripts/try_install.py does not know: {command}"
        assert step.instead or step.reason
