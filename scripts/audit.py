"""`./scripts/audit`: are the dependencies the ones that were pinned, and is anything known against them?"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/audit instead.")

import base64
import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from packaging.markers import Marker
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
LISTS: Final = ("base", "build", "dev", "fuzz")
USAGE: Final = """\
usage: ./scripts/audit

Checks, without a network, that every requirement is one exact version with hashes, that .venv holds these
versions and nothing besides, and that no installed file was changed since. Then asks PyPI, by pip-audit, for
known vulnerabilities of what runs in production and of the rest.

Exit status: 0 all is well, 1 something is wrong, 3 nothing is wrong but PyPI could not be asked about everything.
"""
_PIP_AUDIT: Final = "pip-audit==2.10.1"
#: What an environment brings along by itself.
_OF_THE_ENVIRONMENT: Final = frozenset(("pip", "setuptools"))
#: flanker writes its grammar's tables anew at its first import (scripts/bootstrap.py has it do so).
_WRITTEN_ANEW: Final = re.compile(r"flanker/addresslib/_parser/\w+_parsetab\.py")
_PIN: Final = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)(?:\s*;\s*([^\\]+?))?\s*\\?$")


class _Vulnerability(TypedDict):
    id: str
    fix_versions: list[str]


class _Dependency(TypedDict):
    name: str
    version: str
    vulns: list[_Vulnerability]


@dataclass(frozen=True)
class Pin:
    """One requirement of a list."""

    name: str
    version: str
    hashes: int
    #: Whether it is for this interpreter.
    applies: bool


def main(arguments: list[str]) -> int:
    """The exit status; see USAGE."""
    if arguments:
        print(USAGE, end="")
        return 0 if arguments in (["--help"], ["-h"]) else 2
    wrong: list[str] = []
    pins = {name: _pins(ROOT / "requirements" / f"{name}.txt", wrong) for name in LISTS}
    print(", ".join(f"{name}.txt: {len(found)} pins" for name, found in pins.items()))
    wrong += _installed({pin.name: pin for pin in pins["dev"] if pin.applies})
    wrong += _changed()
    unknown = 0
    for name in LISTS:
        vulnerable, unasked, asked = _advisories(name)
        wrong += vulnerable
        unknown += unasked
        known = f"{len(vulnerable)} known vulnerabilities"
        print(f"{name}.txt: {asked} asked about, {known}, {unasked} could not be asked about")
    for each in wrong:
        print(f"WRONG: {each}")
    if unknown:
        print("PyPI could not be asked about all of them: whether they are vulnerable is NOT known.")
    return 1 if wrong else 3 if unknown else 0


def _pins(path: Path, wrong: list[str]) -> list[Pin]:
    """The requirements of a list; those that aren't exact, or have no hash, are added to `wrong`."""
    pins = []
    text = path.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        requirement, *hashes = (part.strip() for part in line.partition("#")[0].split("--hash="))
        if not requirement:
            continue
        match = _PIN.match(requirement)
        if match is None or not all(each.startswith("sha256:") for each in hashes) or not hashes:
            wrong.append(f"{path.name}: {requirement} is not an exact version with SHA-256 hashes")
            continue
        applies = match[3] is None or Marker(match[3]).evaluate()
        pins.append(Pin(canonicalize_name(match[1]), match[2], len(hashes), applies))
    return pins


def _installed(pins: dict[str, Pin]) -> Iterator[str]:
    """How what is installed differs from what is pinned."""
    installed = {
        str(canonicalize_name(each.metadata["Name"])): each.version for each in importlib.metadata.distributions()
    }
    print(f".venv: {len(installed)} packages installed")
    for name in sorted(pins.keys() | installed.keys()):
        if name not in installed:
            yield f"{name} is not installed"
        elif name not in pins:
            if name not in _OF_THE_ENVIRONMENT:
                yield f"{name} {installed[name]} is installed, but not pinned"
        elif pins[name].version != installed[name]:
            yield f"{name} {installed[name]} is installed, {pins[name].version} is pinned"


def _changed() -> Iterator[str]:
    """Installed files that are not as their package's RECORD has them."""
    checked = 0
    for package in importlib.metadata.distributions():
        for file in package.files or ():
            if file.hash is None or _WRITTEN_ANEW.fullmatch(str(file)):
                continue
            checked += 1
            path = Path(str(file.locate()))
            digest = hashlib.new(file.hash.mode, path.read_bytes()).digest() if path.exists() else b""
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                yield f"{file} of {package.metadata['Name']} is not the file that was installed"
    print(f".venv: {checked} files compared with the hashes in their packages' RECORD")


def _advisories(name: str) -> tuple[list[str], int, int]:
    """Known vulnerabilities in a list, how many of its packages could not be asked about, and how many could.

    pip-audit by itself says "No known vulnerabilities found" also where it could not ask about a single one.
    """
    command = [sys.executable, "-m", "uv", "tool", "run", "--quiet", "--from", _PIP_AUDIT, "pip-audit"]
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    path = ROOT / "requirements" / f"{name}.txt"
    ended = subprocess.run([*command, *options, "-r", str(path)], check=False, capture_output=True, text=True)
    try:
        found: list[_Dependency] = json.loads(ended.stdout)["dependencies"]
    except ValueError:
        print(f"pip-audit: {(ended.stderr.strip().splitlines() or ['no answer'])[-1]}", file=sys.stderr)
        return [], sum(1 for line in path.read_text().splitlines() if "==" in line), 0
    asked = [each for each in found if "skip_reason" not in each]
    vulnerable = [
        f"{each['name']} {each['version']}: {known['id']}, fixed in {', '.join(known['fix_versions']) or 'none yet'}"
        for each in asked
        for known in each["vulns"]
    ]
    return vulnerable, len(found) - len(asked), len(asked)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
