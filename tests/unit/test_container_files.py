"""The Dockerfile, compose.yaml and the manifest of Kubernetes: what they name exists, and who runs may do little.

`./scripts/try_container` builds the image and runs it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import Settings
from relay import command
from scripts import try_container

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
MANIFEST = list(yaml.safe_load_all((ROOT / "docs" / "kubernetes" / "opensend-relay.yaml").read_text()))
#: Image's user and group.
USER = 10001
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}
VARIABLES = {name for field in dataclasses.fields(Settings) for name in field.metadata["source"].variables}
PROCESSES = {"serve", "worker", "web"}


def instructions(stage: int) -> list[tuple[str, str]]:
    """(instruction, the rest) of a stage of the Dockerfile, in order."""
    text = re.split(r"^FROM .*$", DOCKERFILE, flags=re.MULTILINE)[stage]
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def runs_here(services: dict[str, Any]) -> dict[str, Any]:
    """Those of the compose file that run the image of the Dockerfile."""
    return {name: service for name, service in services.items() if service.get("image") == "opensend-relay"}


def pods() -> Iterator[dict[str, Any]]:
    for each in MANIFEST:
        if each["kind"] == "Deployment":
            yield each["spec"]["template"]["spec"]


# The image.


def test_the_image_runs_a_command_of_ours_without_a_shell_between() -> None:
    last = dict(instructions(2))
    assert json.loads(last["ENTRYPOINT"]) == [command.PROGRAM]
    assert json.loads(last["CMD"])[0] in command.COMMANDS
    options, _, check = last["HEALTHCHECK"].partition("CMD ")
    assert "--interval" in options
    program, name = json.loads(check)
    assert (program, name in command.COMMANDS) == (command.PROGRAM, True)
    assert last["USER"] == f"{USER}:{USER}"


def test_the_image_exposes_the_default_ports() -> None:
    assert dict(instructions(2))["EXPOSE"] == f"{DEFAULTS['port']} {DEFAULTS['http_port']}"


def test_all_that_is_installed_is_locked() -> None:
    commands = [each for name, rest in instructions(1) if name == "RUN" for each in rest.split("&&")]
    installs = [options for _, found, options in (each.partition(" pip install ") for each in commands) if found]
    assert len(installs) == 3
    for options in installs:
        assert "--require-hashes" in options or {"--no-deps", "--no-index"} <= set(options.split())


def test_both_stages_have_the_same_base() -> None:
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${BASE}", "${BASE}"]
    copied = [rest for name, rest in instructions(2) if name == "COPY"]
    assert copied == ["--from=build /opt/opensend-relay /opt/opensend-relay"]


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    """All is left out but what a line with `!` takes in again, so that no settings and no history get into an image."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    taken_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {path.split("/")[0] for name, rest in instructions(1) if name == "COPY" for path in rest.split()[:-1]}
    assert taken_in == copied
    assert [path for path in taken_in if not (ROOT / path).exists()] == []


# compose.yaml


def test_compose_runs_each_process_closed() -> None:
    services = runs_here(COMPOSE["services"])
    assert {service["command"][0] for service in services.values()} == PROCESSES
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["stop_grace_period"].removesuffix("s")) > DEFAULTS["drain_seconds"] + 10


def test_compose_names_settings_files_and_volumes_that_are_there() -> None:
    for service in COMPOSE["services"].values():
        if "command" in service:
            assert set(service.get("environment", {})) <= VARIABLES
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
        # A trial is for this machine.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


# Kubernetes


def test_the_manifest_runs_each_process_closed() -> None:
    found = set()
    for pod in pods():
        (container,) = pod["containers"]
        found |= set(container["args"])
        context = container["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {USER}
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        # Variables of Services would be taken for settings.
        assert pod["enableServiceLinks"] is False
    assert found == PROCESSES


def test_the_manifest_waits_for_the_drain() -> None:
    for pod in pods():
        (container,) = pod["containers"]
        pause = int(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])[1])
        assert pod["terminationGracePeriodSeconds"] > pause + DEFAULTS["drain_seconds"] + 10


def test_the_manifest_names_settings_commands_and_ports_that_are_there() -> None:
    ports = {"serve": DEFAULTS["port"], "web": DEFAULTS["http_port"]}
    for pod in pods():
        (container,) = pod["containers"]
        assert {variable["name"] for variable in container.get("env", ())} <= VARIABLES
        program, name, process = container["livenessProbe"]["exec"]["command"]
        assert (program, name) == (command.PROGRAM, "health")
        assert process in {"relay", "worker", "web"}
        assert [port["containerPort"] for port in container.get("ports", ())] == [
            ports[each] for each in container["args"] if each in ports
        ]


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget"])
def test_selectors_find_a_deployment(kind: str) -> None:
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in MANIFEST if each["kind"] == "Deployment"]
    for each in MANIFEST:
        if each["kind"] == kind:
            selector = each["spec"]["selector"]
            assert selector.get("matchLabels", selector) in labels
            assert not re.match("smtp-relay", each["metadata"]["name"])


# scripts/try_container


def test_where_nothing_builds_images_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert try_container.main([]) == 3
    assert capsys.readouterr().out.startswith("NOT TRIED: ")
