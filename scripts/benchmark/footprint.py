"""Memory: idle, with many connections, with many large messages at once, and after a long time."""

from __future__ import annotations

from typing import Final

from scripts.benchmark.hold import descriptors, idle_connections
from scripts.benchmark.plan import Plan
from scripts.benchmark.report import Series, Table, say, verdict
from scripts.benchmark.subjects import PeakRss, Stage, rss, wait_until_at_rest
from scripts.certificate import ensure_certificate
from scripts.database import query

#: What is asked, in MB of 1,000,000 octets, or in KB of 1,000 for each connection.
IDLE_GOAL: Final = 70.0
CONNECTION_GOALS: Final = {False: 45.0, True: 90.0}
BURST_GOAL: Final = 400.0
#: What is asked of a soak's end, as a ratio to what it was after the first tenth.
SOAK_GOAL: Final = 1.1

#: Files that the relay's process and ours have open besides connections.
_OTHER_FILES: Final = 200
_SOAK_MIX: Final = (("1.2 KB", 60), ("25 KB", 30), ("230 KB", 9), ("10 MB", 1))
_MB: Final = 1_000_000


def memory(stage: Stage, plan: Plan) -> list[Table]:
    """RSS of all processes of the relay together, one worker."""
    table = Table(
        "Memory of all processes of the relay together (RSS), one worker",
        ("", "measured", "goal", ""),
        note="MB and KB are 1,000,000 and 1,000 octets. Pages that processes share are counted once.",
    )
    idle = Series()
    for _ in range(plan.rounds):
        with stage.relay() as relay:
            wait_until_at_rest(relay.pid)
            idle.values.append(rss(relay.pid) / _MB)
    table.rows.append(_row("idle after the start, MB", idle, ".1f", IDLE_GOAL))
    for tls in (False, True):
        table.rows.append(_connections(stage, plan, tls=tls))
    table.rows.append(_burst(stage, plan))
    return [table]


def soak(stage: Stage, plan: Plan) -> list[Table]:
    """Whether memory grows: mixed sizes, a new connection every 20 messages."""
    readings: list[float] = []
    sent = 0
    with stage.relay() as relay:
        steps = 20
        for _ in range(steps):
            for size, share in _SOAK_MIX:
                messages = plan.soak * share // 100 // steps
                load = stage.load(relay, size, seconds=3600, messages=messages, per_connection=20)
                sent += stage.measure(relay, load).outcome.accepted
            readings.append(rss(relay.pid) / _MB)
            say(f"  {sent:,} mails, {readings[-1]:.1f} MB")
        stage.clean()
    ratio = readings[-1] / readings[1]
    table = Table(
        "Soak",
        ("mails", "RSS after a tenth, MB", "RSS at the end, MB", "ratio", "goal", ""),
        note="Of a hundred messages "
        + ", ".join(f"{share} of {size}" for size, share in _SOAK_MIX)
        + "; 32 connections at a time, each replaced after 20 messages.",
    )
    measured = (f"{sent:,}", f"{readings[1]:.1f}", f"{readings[-1]:.1f}", f"{ratio:.2f}")
    table.rows.append((*measured, f"≤ {SOAK_GOAL}", verdict(ratio <= SOAK_GOAL)))
    return [table]


def _connections(stage: Stage, plan: Plan, *, tls: bool) -> tuple[str, ...]:
    count = min(plan.idle_connections, descriptors() - _OTHER_FILES)
    settings = {
        "SMTP_RELAY_MAX_CONNECTIONS": str(count + 10),
        "SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS": str(count + 10),
        "SMTP_RELAY_COMMAND_TIMEOUT_SECONDS": "600",
    }
    if tls:
        certificate, key = ensure_certificate(stage.directory / "tls")
        settings |= {"SMTP_RELAY_TLS_CERT_PATH": str(certificate), "SMTP_RELAY_TLS_KEY_PATH": str(key)}
    # What the first connections of a process load stays; it is no cost of the others.
    with stage.relay(**settings) as relay, idle_connections(relay.port, stage.key.token, 10, tls=tls):
        wait_until_at_rest(relay.pid)
        before = rss(relay.pid)
        with idle_connections(relay.port, stage.key.token, count - 10, tls=tls):
            wait_until_at_rest(relay.pid)
            each = (rss(relay.pid) - before) / (count - 10) / 1000
    name = f"each of {count:,} idle authenticated connections, {'TLS' if tls else 'no TLS'}, KB"
    return _row(name, Series([each]), ".1f", CONNECTION_GOALS[tls])


def _burst(stage: Stage, plan: Plan) -> tuple[str, ...]:
    with stage.relay() as relay, PeakRss(relay.pid) as peak:
        stage.clean()
        outcome = stage.load(relay, "39 MB", connections=plan.burst, seconds=3600, messages=plan.burst).run()
    ((stored,),) = query(stage.database_url, "SELECT count(*) FROM emails")
    stage.clean()
    say(f"  {outcome}, {stored} rows, peak {peak.octets / _MB:.0f} MB")
    assert outcome.accepted == stored == plan.burst, f"{outcome}, {stored} rows"
    return _row(
        f"peak, {plan.burst} clients with a 39 MB mail each, MB", Series([peak.octets / _MB]), ".0f", BURST_GOAL
    )


def _row(name: str, measured: Series, form: str, goal: float) -> tuple[str, ...]:
    return name, measured.text(form), f"≤ {goal:g}", verdict(measured.median <= goal)
