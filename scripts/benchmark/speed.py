"""CPU per message and throughput, of the relay and of the yardstick in turns."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from scripts.benchmark.plan import Plan
from scripts.benchmark.report import Series, Table, say, verdict
from scripts.benchmark.subjects import ROOT, Sample, Stage, together
from scripts.benchmark.swiftqueue import SwiftQueue
from scripts.services import Server
from scripts.services.processes import family

#: What is asked of CPU per message, as a ratio to the yardstick's.
COST_GOALS: Final[Mapping[str, float]] = MappingProxyType(
    {"1.2 KB": 0.45, "25 KB": 0.35, "230 KB": 0.30, "10 MB": 0.25}
)
SESSION_GOAL: Final = 0.6
#: What is asked of two workers' throughput, as a ratio to one yardstick's.
THROUGHPUT_GOAL: Final = 2.0
#: What publishing may add.
PUBLISHING_GOAL: Final = 1.25
#: What a change may cost, as a ratio to the commit before it.
COMPARED_GOAL: Final = 1.03


@dataclass(frozen=True, slots=True)
class _Kind:
    """A row of the table: what is sent how."""

    name: str
    size: str
    goal: float
    options: Mapping[str, int]


def cost(stage: Stage, plan: Plan) -> list[Table]:
    """What a message costs, by size, and what a connection for a single message costs."""
    kinds = _cost_kinds()
    with stage.relay() as relay, stage.yardstick() as yardstick:
        samples = _in_turns(stage, plan, kinds, _present(relay, yardstick))
    table = Table(
        "CPU of the relay per message",
        ("mail", "yardstick, ms", "relay, ms", "ratio", "goal", ""),
        note="32 connections, AUTH once a connection (but for the last row: connection, EHLO, AUTH, one mail, QUIT),"
        " one process of each, no TLS, polling mode, each message with a different Message-ID.",
    )
    pace = Table(
        "The same runs: throughput and latency",
        ("mail", "yardstick, mails/s", "relay, mails/s", "yardstick p50 / p99, ms", "relay p50 / p99, ms"),
    )
    for kind in kinds:
        table.rows.append(_ratio_row(kind.name, samples[kind.name], kind.goal))
        by_subject = [samples[kind.name].get(server, []) for server in (YARDSTICK, RELAY)]
        pace.rows.append(
            (
                kind.name,
                *(_rate(each).text(",.0f") if each else "–" for each in by_subject),
                *map(_percentiles, by_subject),
            )
        )
    return [table, pace]


def compared(stage: Stage, plan: Plan, checkout: Path, commit: str) -> list[Table]:
    """CPU per message of this checkout and of the relay in another, which is at `commit`, side by side.

    Both are started anew for each pair, have their loads at the same time, and share one core where there are several.
    A core that others of the same machine use is slower by a third from one second to the next; so it is slower for
    both. Measured so, two copies of one commit differ by less than 1 %, one after the other by up to 30 %.
    """
    kinds = _cost_kinds()
    checkouts = {"now": ROOT, "before": checkout}
    samples: dict[str, dict[str, list[Sample]]] = {kind.name: {name: [] for name in checkouts} for kind in kinds}
    for number in range(plan.rounds):
        names = list(checkouts)[:: -1 if number % 2 else 1]
        with contextlib.ExitStack() as stack:
            servers = {name: stack.enter_context(stage.relay(name, checkouts[name])) for name in names}
            stack.enter_context(_core_of_their_own(*servers.values()))
            for server in servers.values():
                stage.measure(server, stage.load(server, "1.2 KB", messages=plan.warm_up_messages, seconds=60))
            for kind in kinds:
                for server in servers.values():
                    stage.load(server, kind.size, connections=1, messages=3).run()
                options = {"seconds": plan.seconds, **kind.options}
                loads = [(server, stage.load(server, kind.size, **options)) for server in servers.values()]
                halves = zip(*(stage.measure_together(loads) for _ in range(2)), strict=True)
                for name, several in zip(servers, halves, strict=True):
                    samples[kind.name][name].append(together(several))
                costs = [samples[kind.name][name][-1].cpu_ms for name in ("before", "now")]
                say(f"  {number + 1}/{plan.rounds}  {kind.name:<28} {costs[0]:9.3f} ms → {costs[1]:9.3f} ms")
    table = Table(
        f"CPU of the relay per message, beside commit {commit}",
        ("mail", "before, ms", "now, ms", "ratio, pair by pair", "goal", ""),
        note=f"Median of {plan.rounds} pairs, each of separate processes, with both loads at once on one core.",
    )
    for kind in kinds:
        ours, theirs = _cpu(samples[kind.name]["now"]), _cpu(samples[kind.name]["before"])
        ratio = ours / theirs
        row = (theirs.text(".3f"), ours.text(".3f"), ratio.text(".3f"), f"≤ {COMPARED_GOAL}")
        table.rows.append((kind.name, *row, verdict(ratio.median <= COMPARED_GOAL)))
    return [table]


@contextlib.contextmanager
def _core_of_their_own(*servers: Server) -> Iterator[None]:
    """The last core is for these servers; all that this process starts meanwhile has the others. Linux alone."""
    cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    if len(cores) < 2:
        yield
        return
    for server in servers:
        for process in family(server.pid):
            process.cpu_affinity(cores[-1:])
    os.sched_setaffinity(0, cores[:-1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _cost_kinds() -> list[_Kind]:
    kinds = [_Kind(size, size, goal, {}) for size, goal in COST_GOALS.items()]
    return [*kinds, _Kind("connection with one 1.2 KB", "1.2 KB", SESSION_GOAL, {"per_connection": 1})]


def throughput(stage: Stage, plan: Plan) -> list[Table]:
    """What two workers carry on the whole machine, against one yardstick process."""
    kinds = [_Kind(size, size, THROUGHPUT_GOAL, {}) for size in ("1.2 KB", "25 KB")]
    with stage.relay(WEB_CONCURRENCY="2") as relay, stage.yardstick() as yardstick:
        samples = _in_turns(stage, plan, kinds, _present(relay, yardstick))
    table = Table(
        "Throughput of the whole machine",
        ("mail", "yardstick, mails/s", "relay, two workers, mails/s", "ratio", "goal", ""),
        note="Client, Postgres and Valkey share the machine's cores with the subject.",
    )
    for kind in kinds:
        ours, theirs = _rate(samples[kind.name][RELAY]), _rate(samples[kind.name].get(YARDSTICK, []))
        if theirs.values:
            ratio = ours / theirs
            compared = (theirs.text(",.0f"), ours.text(",.0f"), ratio.text(".2f"))
            table.rows.append((kind.name, *compared, f"≥ {kind.goal}", verdict(ratio.median >= kind.goal)))
        else:
            table.rows.append((kind.name, "–", ours.text(",.0f"), "–", f"≥ {kind.goal}", ""))
    return [table]


def publishing(stage: Stage, plan: Plan) -> list[Table]:
    """What it costs to publish a job for each message, until the last one is in the queue."""
    table = Table(
        "CPU of the relay per message, with jobs published to SQS",
        ("mail", "polling, ms", "publishing, ms", "ratio", "goal", ""),
        note="Until each mail had its job in the queue. The queue service's own CPU is not counted. The swift queue"
        " (scripts/benchmark/swiftqueue.py) needs little of it, like a service elsewhere. moto, which imitates"
        " Amazon's, needs three times the relay's on the same two cores: the relay's caches are cold then, and its"
        " figure is for information.",
    )
    with SwiftQueue(stage.directory / "swiftqueue") as swift:
        costs = _publishing(stage, plan, plan.published, swift.client_environment, swift.queue_url, swift.jobs)
        ratio = costs[1] / costs[0]
        table.rows.append(
            (
                "1.2 KB, swift queue",
                *(cost.text(".3f") for cost in costs),
                ratio.text(".2f"),
                f"≤ {PUBLISHING_GOAL}",
                verdict(ratio.median <= PUBLISHING_GOAL),
            )
        )
    queue_url = stage.sqs.create_queue("bench")
    service = stage.sqs.client()

    def jobs() -> int:
        found = service.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["ApproximateNumberOfMessages"])
        return int(found["Attributes"]["ApproximateNumberOfMessages"])

    costs = _publishing(stage, plan, plan.published_to_moto, stage.sqs.client_environment, queue_url, jobs)
    figures = (*(cost.text(".3f") for cost in costs), (costs[1] / costs[0]).text(".2f"))
    table.rows.append(("1.2 KB, moto", *figures, "", ""))
    return [table]


def _publishing(
    stage: Stage, plan: Plan, messages: int, environment: Mapping[str, str], queue_url: str, jobs: Callable[[], int]
) -> tuple[Series, Series]:
    """CPU per message without and with jobs. `jobs`: how many have arrived since the beginning."""
    polled: list[Sample] = []
    paid: list[Sample] = []
    sent = 0
    settings = {**environment, "BACKGROUND_JOBS_QUEUE_URL": queue_url}
    with stage.relay("polling") as polling, stage.relay("publishing", **settings) as publisher:
        # The first round is not counted: compilers, caches and pools get their warm-up.
        for number in range(plan.rounds + 1):
            for server, samples in ((polling, polled), (publisher, paid))[:: -1 if number % 2 else 1]:
                load = stage.load(server, "1.2 KB", seconds=60, messages=messages)
                if server is publisher:
                    sent += messages
                    sample = stage.measure(server, load, finished=lambda _, due=sent: jobs() >= due)  # type: ignore[misc]
                else:
                    sample = stage.measure(server, load)
                if number:
                    samples.append(sample)
                    how = "publishing" if server is publisher else "polling"
                    say(f"  {number}/{plan.rounds}  {how:<28} {sample.cpu_ms:9.3f} ms")
    return _cpu(polled), _cpu(paid)


RELAY: Final = "relay"
YARDSTICK: Final = "yardstick"


def _present(relay: Server, yardstick: Server | None) -> dict[str, Server]:
    return {RELAY: relay, **({YARDSTICK: yardstick} if yardstick else {})}


def _in_turns(
    stage: Stage, plan: Plan, kinds: Sequence[_Kind], subjects: Mapping[str, Server]
) -> dict[str, dict[str, list[Sample]]]:
    """Samples by kind and subject; who is first changes with each round."""
    samples: dict[str, dict[str, list[Sample]]] = {kind.name: {name: [] for name in subjects} for kind in kinds}
    for server in subjects.values():
        # Compilers, caches and pools get their warm-up.
        stage.measure(server, stage.load(server, "1.2 KB", messages=plan.warm_up_messages, seconds=60))
    for number in range(plan.rounds):
        for kind in kinds:
            for name in list(subjects)[:: -1 if number % 2 else 1]:
                server = subjects[name]
                # What is there for large messages alone has its start behind it.
                stage.load(server, kind.size, connections=1, messages=1).run()
                load = stage.load(server, kind.size, **{"seconds": plan.seconds, **kind.options})
                sample = stage.measure(server, load)
                samples[kind.name][name].append(sample)
                say(
                    f"  {number + 1}/{plan.rounds}  {kind.name:<28} {name:<10} {sample.cpu_ms:9.3f} ms"
                    f" {sample.outcome.rate:9,.1f}/s   client {sample.outcome.client_cpu:.1f} s"
                )
    return samples


def _cpu(samples: Sequence[Sample]) -> Series:
    return Series([sample.cpu_ms for sample in samples])


def _rate(samples: Sequence[Sample]) -> Series:
    return Series([sample.outcome.rate for sample in samples])


def _percentiles(samples: Sequence[Sample]) -> str:
    if not samples:
        return "–"
    halves = Series([sample.outcome.percentile(50) * 1000 for sample in samples])
    slowest = Series([sample.outcome.percentile(99) * 1000 for sample in samples])
    return f"{halves.median:,.1f} / {slowest.median:,.1f}"


def _ratio_row(name: str, samples: Mapping[str, Sequence[Sample]], goal: float) -> tuple[str, ...]:
    ours = _cpu(samples[RELAY])
    if YARDSTICK not in samples:
        return name, "–", ours.text(".3f"), "–", f"≤ {goal}", ""
    theirs = _cpu(samples[YARDSTICK])
    ratio = ours / theirs
    return name, theirs.text(".3f"), ours.text(".3f"), ratio.text(".2f"), f"≤ {goal}", verdict(ratio.median <= goal)
