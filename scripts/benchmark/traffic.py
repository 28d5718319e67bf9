"""What the relay asks of Postgres and Redis for a message, counted by those two."""

from __future__ import annotations

from typing import Final

from scripts.benchmark.plan import Plan
from scripts.benchmark.report import Table, verdict
from scripts.benchmark.subjects import Stage
from scripts.database import execute, query

_MESSAGES: Final = 1_000
#: Commands outside of scripts; what a script does inside is no round trip.
_SCRIPTED: Final = ("eval", "evalsha", "fcall")


def traffic(stage: Stage, _plan: Plan) -> list[Table]:
    """Statements and commands a message, with warm caches."""
    with stage.relay() as relay, stage.redis() as redis:
        load = stage.load(relay, "1.2 KB", connections=1, seconds=120, messages=_MESSAGES)
        stage.measure(relay, load)
        before = _reads(redis.info("stats"))
        execute(stage.database_url, "SELECT pg_stat_statements_reset()")
        sent = stage.measure(relay, load).outcome.accepted
        statements = query(
            stage.database_url,
            "SELECT query, calls FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid"
            " WHERE query ~* 'emails|api_keys|email_suppressions|domains'"
            " AND query !~* 'TRUNCATE|pg_stat_statements' ORDER BY calls DESC",
        )
        reads = _reads(redis.info("stats")) - before
    inserts = sum(int(str(calls)) for text, calls in statements if "INSERT INTO emails" in str(text))
    others = [(str(text), int(str(calls))) for text, calls in statements if "INSERT INTO emails" not in str(text)]
    # last_used_at is written once a minute a key, off the path of any reply.
    on_path = sum(calls for text, calls in others if "last_used_at" not in text)
    # AUTH, a reconnect and our own INFO are a few more.
    round_trips = (reads - 5) / sent
    table = Table(
        "What a message asks of Postgres and Redis, caches warm",
        ("", f"for {sent:,} mails of one client", "goal", ""),
        note="Counted by pg_stat_statements and by Valkey's INFO. One client, one connection: with more clients at"
        " a time several messages share an INSERT, and several questions to Redis a packet.",
    )
    table.rows = [
        ("INSERT statements", f"{inserts:,}", "one a mail at most", verdict(inserts <= sent)),
        ("other statements on the accept path", f"{on_path:,}", "none but the look-up at AUTH", verdict(on_path <= 1)),
        ("round trips to Redis for each mail", f"{max(0.0, round_trips):.2f}", "≤ 1", verdict(round_trips <= 1)),
    ]
    return [table]


def _reads(stats: object) -> int:
    """How often Valkey found something to read on a connection: at least once a round trip."""
    assert isinstance(stats, dict)
    return int(stats["total_reads_processed"])
