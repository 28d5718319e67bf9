"""The commands of docs/web.md that set SES up: run by a shell with a program in the place of the AWS CLI, which records
them, and looked at with the service models that the CLI itself has (botocore)."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final, NamedTuple

import boto3
import pytest
from botocore import xform_name
from botocore.validate import validate_parameters

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT: Final = "123456789012"
TOPIC: Final = f"arn:aws:sns:us-east-1:{ACCOUNT}:opensend-ses-events"
QUEUE: Final = f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/opensend-ses-events-dead"
QUEUE_ARN: Final = f"arn:aws:sqs:us-east-1:{ACCOUNT}:opensend-ses-events-dead"
#: What the CLI prints of a command with `--query`.
PRINTED: Final = {
    "get-caller-identity": ACCOUNT,
    "create-topic": TOPIC,
    "create-queue": QUEUE,
    "subscribe": f"{TOPIC}:11111111-2222-4333-8444-555555555555",
}
#: Options of the CLI's, which are no parameters of the call.
OWN_OPTIONS: Final = ("region", "query", "output")
#: As the CLI calls a parameter.
RENAMED: Final = {"notification-endpoint": "endpoint"}


class Command(NamedTuple):
    service: str
    operation: str
    options: dict[str, str]

    def parameters(self) -> dict[str, Any]:
        """The parameters of the call, as the CLI makes them. Raises for a JSON text that is none."""
        model = boto3.client(self.service, region_name="us-east-1").meta.service_model
        (name,) = (name for name in model.operation_names if xform_name(name, "-") == self.operation)
        shape = model.operation_model(name).input_shape
        members = {xform_name(member, "-"): (member, kind) for member, kind in shape.members.items()}
        found: dict[str, Any] = {}
        for option, value in self.options.items():
            member, kind = members[RENAMED.get(option, option)]
            found[member] = converted(kind.type_name, value)
        validate_parameters(found, shape)
        return found


def converted(kind: str, value: str) -> Any:
    if kind == "boolean":
        return True
    if kind in ("structure", "map", "list"):
        if value.startswith("{"):
            return json.loads(value)
        return dict(pair.split("=", 1) for pair in value.split(","))
    return value


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[Command]:
    """What the block runs, in order."""
    folder = tmp_path_factory.mktemp("aws")
    cases = "\n".join(f"  {operation}) echo '{text}';;" for operation, text in PRINTED.items())
    program = folder / "aws"
    program.write_text(
        f'#!/bin/sh\nfor each in "$@"; do printf \'%s\\0\' "$each" >> {folder}/said; done\n'
        f"printf '\\n\\0' >> {folder}/said\ncase \"$2\" in\n{cases}\nesac\n"
    )
    program.chmod(0o755)
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "web.md").read_text(), re.DOTALL)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["sh", "-eu", "-c", block], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    found = []
    for words in (folder / "said").read_text().split("\n\0")[:-1]:
        service, operation, *rest = words.split("\0")[:-1]
        options: dict[str, str] = {}
        for word in rest:
            if word.startswith("--"):
                options[name := word[2:]] = ""
            else:
                assert options[name] == "", words
                options[name] = word
        own = {name: options.pop(name, "") for name in OWN_OPTIONS}
        assert own["region"] == "us-east-1" or service == "sts"
        found.append(Command(service, operation, options))
    return found


def attributes(commands: list[Command]) -> dict[str, str]:
    """What single attributes of topic and subscription are set to."""
    return {
        each.options["attribute-name"]: each.options["attribute-value"]
        for each in commands
        if "attribute-name" in each.options
    }


def test_every_command_is_one_that_the_services_know(commands: list[Command]) -> None:
    assert len(commands) == 11
    for command in commands:
        command.parameters()


def test_policies_let_ses_publish_and_sns_put_aside(commands: list[Command]) -> None:
    ((policy),) = json.loads(attributes(commands)["Policy"])["Statement"]
    assert (policy["Principal"], policy["Action"], policy["Resource"]) == (
        {"Service": "ses.amazonaws.com"},
        "sns:Publish",
        TOPIC,
    )
    assert policy["Condition"] == {"StringEquals": {"AWS:SourceAccount": ACCOUNT}}
    (queue,) = (each.parameters() for each in commands if each.operation == "set-queue-attributes")
    ((policy),) = json.loads(queue["Attributes"]["Policy"])["Statement"]
    assert (policy["Principal"], policy["Action"], policy["Resource"]) == (
        {"Service": "sns.amazonaws.com"},
        "sqs:SendMessage",
        QUEUE_ARN,
    )
    assert policy["Condition"] == {"ArnEquals": {"aws:SourceArn": TOPIC}}
    assert json.loads(attributes(commands)["RedrivePolicy"]) == {"deadLetterTargetArn": QUEUE_ARN}


def test_sns_tries_for_about_an_hour_and_no_longer_than_it_may(commands: list[Command]) -> None:
    """SNS takes 100 retries and 3,600 seconds at most."""
    policy = json.loads(attributes(commands)["DeliveryPolicy"])["healthyRetryPolicy"]
    least, most = policy["minDelayTarget"], policy["maxDelayTarget"]
    between = policy["numRetries"] - sum(
        policy[f"num{phase}DelayRetries"] if phase != "No" else policy["numNoDelayRetries"]
        for phase in ("No", "Min", "Max")
    )
    assert between >= 0
    assert policy["numRetries"] <= 100
    growth = (most / least) ** (1 / (between + 1))
    seconds = policy["numMinDelayRetries"] * least + policy["numMaxDelayRetries"] * most
    seconds += sum(least * growth**step for step in range(1, between + 1))
    assert 3000 <= seconds <= 3600


def test_events_of_the_relays_own_links_are_not_asked_for(commands: list[Command]) -> None:
    (destination,) = (
        each.parameters() for each in commands if each.operation == "create-configuration-set-event-destination"
    )
    wanted = destination["EventDestination"]
    assert wanted["SnsDestination"] == {"TopicArn": TOPIC}
    assert set(wanted["MatchingEventTypes"]) == {
        *("SEND", "DELIVERY", "BOUNCE", "COMPLAINT", "DELIVERY_DELAY", "REJECT", "RENDERING_FAILURE")
    }


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_a_shell_and_a_parser_of_json_take_what_papers_show(page: Path) -> None:
    for language, block in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL):
        if language == "json":
            json.loads(block)
        elif language == "sh":
            ended = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True, timeout=60, check=False)
            assert ended.stderr == ""
