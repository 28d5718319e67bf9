"""`./scripts/soak`: the long forms of tests/faults, and what tests/security measures.

Breaks things for a while, and says in figures what came of it.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/soak instead.")

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from scripts.services import ServiceFailed
from tests.faults.delivery_kills import Outcome as Deliveries
from tests.faults.delivery_kills import kill_at_random as kill_deliveries
from tests.faults.delivery_stage import ROOT, DeliveryStage
from tests.faults.delivery_versions import LAST_RELEASE, leave_behind
from tests.faults.kills import kill_at_random
from tests.faults.ledger import Books
from tests.faults.neighbours import OTHERS
from tests.faults.neighbours import measure as measure_neighbours
from tests.faults.outages import Ground, Seen
from tests.faults.paced_kills import RATE, kill_paced, send_large
from tests.faults.postgres_table import POSTGRES
from tests.faults.queue_table import QUEUE
from tests.faults.redis_table import REDIS
from tests.faults.restarts import restart_servers
from tests.faults.siege import PAUSE_SECONDS, besiege
from tests.faults.stage import Stage
from tests.faults.web_kills import kill_at_random as kill_web
from tests.faults.web_stage import WebStage
from tests.faults.webhook_leases import kill_during_calls
from tests.security.auth_times import DELAY_SECONDS, measure
from tests.support.releases import NoSuchCommit, unpack
from tests.support.user_troubles import TROUBLES

PARTS: Final = (
    *("kills", "servers", "outages", "siege", "auth", "neighbours"),
    *("delivery-kills", "versions", "paced-kills", "web-kills", "leases"),
)

#: How mails come to a delivery worker, and whether by a queue.
_WAYS: Final = (("rows that wait", False), ("jobs of the queue", True))
#: How long web and worker are killed, in seconds.
_WEB_SECONDS: Final = 400.0


def main(arguments: list[str]) -> int:
    """The exit status: 0 every promise held, 1 one did not."""
    options = _options(arguments)
    parts: dict[str, Callable[[argparse.Namespace, Path], None]] = {
        "kills": _kills,
        "servers": _servers,
        "outages": _outages,
        "siege": _siege,
        "auth": _auth,
        "neighbours": _neighbours,
        "delivery-kills": _delivery_kills,
        "versions": _versions,
        "paced-kills": _paced_kills,
        "web-kills": _web_kills,
        "leases": _leases,
    }
    began = time.monotonic()
    broken = []
    for name in options.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="soak-") as directory:
            os.chmod(directory, 0o755)  # noqa: S103 - Postgres may have to be another user
            try:
                parts[name](options, Path(directory))
            except AssertionError as error:
                broken.append(name)
                print(f"\nBROKEN: {name}: {error}", flush=True)
            except ServiceFailed as error:
                print(error, file=sys.stderr)
                return 1
    print(f"\n{time.monotonic() - began:.0f} s, load average {os.getloadavg()[0]:.1f}")
    return 1 if broken else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./scripts/soak",
        description="The long forms of tests/faults: kills the relay and its servers under load, injects every fault"
        " of the table, and prints the results as Markdown. Three quarters of an hour with the defaults.",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"just these: {', '.join(PARTS)}")
    parser.add_argument("--kills", type=int, default=200, help="kill -9 of the relay, so many times (200)")
    parser.add_argument("--restarts", type=int, default=20, help="kill -9 of each server, so many times (20)")
    parser.add_argument("--queue-away", type=float, default=60.0, help="seconds that the queue is away (60)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each fault of the table happens (3)")
    parser.add_argument("--clients", type=int, default=8, help="clients that send at a time (8)")
    parser.add_argument(
        "--pause", type=float, default=0.5, help="seconds between a client's messages (0.5; moto is no fast queue)"
    )
    parser.add_argument("--slow-clients", type=int, default=2000, help="of the siege (2000)")
    parser.add_argument("--siege-seconds", type=float, default=180.0, help="how long it lasts (180)")
    parser.add_argument("--tries", type=int, default=300, help="AUTHs with each kind of wrong key (300)")
    parser.add_argument("--seconds", type=float, default=900.0, help="at most for each part (900)")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices")
    return parser.parse_args(arguments)


def _kills(options: argparse.Namespace, directory: Path) -> None:
    with Stage(directory, WEB_CONCURRENCY="2") as stage:
        outcome = kill_at_random(
            stage,
            options.kills,
            seed=options.seed,
            clients=options.clients,
            seconds=options.seconds,
            pause=options.pause,
            between=8,
        )
        _print_books("kill -9 of the relay", outcome.books, outcome.seconds)
        print(f"| kills | {outcome.kills.total()}: {_counts(outcome.kills)} |")
        print(f"| the service gave up | {outcome.given_up} |")
        print(f"| attempts, by their end | {_counts(outcome.fates)} |", flush=True)
        outcome.books.check()
        stage.check_log()


def _delivery_kills(options: argparse.Namespace, directory: Path) -> None:
    """Half of the kills without a queue, half with one."""
    for name, queue in _WAYS:
        with DeliveryStage(directory / name.replace(" ", "-"), queue=queue) as stage:
            outcome = kill_deliveries(
                stage, options.kills // 2, seed=options.seed, faults=True, seconds=options.seconds / 2
            )
        _print_deliveries(f"kill -9 of delivery processes: {name}", outcome)
        outcome.ledger.check()


def _print_deliveries(title: str, outcome: Deliveries) -> None:
    ledger = outcome.ledger
    print(f"\n| {title} | {outcome.seconds:.0f} s |\n|---|---|")
    print(f"| kills | {outcome.kills.total()}: {_counts(outcome.kills)} |")
    print(f"| faults | {outcome.faults.total()}: {_counts(outcome.faults)} |")
    print(f"| mails, by their end | {ledger.mails}: {_counts(ledger.statuses)} |")
    print(f"| lost | {len(ledger.lost)} |")
    print(f"| unclear, by what was decided | {ledger.unclear.total()}: {_counts(ledger.unclear)} |")
    print(f"| copies | {ledger.copies}, of mails that were not called unclear: {len(ledger.unexplained)} |")
    print(f"| failed, though the provider had them | {ledger.failed_and_taken} |")
    print(f"| waited for the end of their lease | {outcome.needed_lease} |", flush=True)


def _versions(options: argparse.Namespace, directory: Path) -> None:
    """The last release and this one: each settles what the other one leaves, then both are killed at random."""
    try:
        tree = unpack(LAST_RELEASE, directory / "last-release")
    except NoSuchCommit as error:
        print(f"\nNOT TRIED: versions: {error}", flush=True)
        return
    services = (tree, ROOT)
    with DeliveryStage(directory / "left", checkouts=services) as stage:
        last, this = stage.services
        print("\n| killed for good | left, by its state in Redis and its status later | settled after |\n|---|---|---|")
        for name, leaving, staying in (("the last release", last, this), ("this one", this, last)):
            left = leave_behind(stage, leaving, staying)
            states = ", ".join(f"{state} {status} {count}" for (state, status), count in sorted(left.became.items()))
            print(f"| {name} | {states} | {left.seconds:.0f} s |", flush=True)
            left.check()
    for name, queue in _WAYS:
        with DeliveryStage(directory / name.replace(" ", "-"), queue=queue, checkouts=services) as stage:
            outcome = kill_deliveries(
                stage, options.kills // 2, seed=options.seed, faults=True, seconds=options.seconds / 2
            )
        _print_deliveries(f"kill -9 of either of two versions: {name}", outcome)
        outcome.ledger.check()


def _paced_kills(options: argparse.Namespace, directory: Path) -> None:
    """A tenth of the kills, since each is followed by seconds that are looked at; then some large mails."""
    count = max(1, options.kills // 10)
    killed = kill_paced(directory / "kills", count, seed=options.seed, seconds=options.seconds / 2)
    print(f"\n| kill -9 of processes that hold permits of {RATE:g} a second | {killed.kills} kills |\n|---|---|")
    print(f"| the most in a second | {killed.most} |")
    print(f"| used | {killed.used:.0%} |")
    for name, parts in (("one process", killed.after_one), ("all processes", killed.after_all)):
        figures = ", ".join(f"{part:.0%}" for part in sorted(parts)[:5])
        print(f"| used in the 2 s after a kill of {name} | least {figures} of {len(parts)} |", flush=True)
    killed.check()
    large = send_large(directory / "large", min(count, 9))
    print(f"\n| mails of 12 MB from three processes, 2 MB a second | {large.mails} |\n|---|---|")
    print(f"| octets, and seconds from the first to the last | {large.octets / 1e6:.0f} MB, {large.seconds:.1f} s |")
    print(f"| the most of mails that began within a second | {large.most / 1e6:.0f} MB |", flush=True)
    large.check()


def _web_kills(options: argparse.Namespace, directory: Path) -> None:
    with WebStage(directory) as stage:
        outcome = kill_web(stage, min(options.seconds, _WEB_SECONDS), seed=options.seed, clients=options.clients)
        wrong = stage.tracebacks()
    ledger = outcome.ledger
    print(f"\n| kill -9 of web and worker while events come back | {outcome.seconds:.0f} s |\n|---|---|")
    print(f"| kills | {outcome.kills.total()}: {_counts(outcome.kills)} |")
    print(f"| faults | {outcome.faults.total()}: {_counts(outcome.faults)} |")
    print(f"| events of SES, and POSTs of them | {ledger.notifications}, {ledger.posts}: {_counts(ledger.answers)} |")
    print(f"| accepted and not stored once | {len(ledger.not_stored)} |")
    print(f"| mails with a wrong status or without their suppression | {len(ledger.wrong_mails)} |")
    print(f"| clicks | {_counts(ledger.clicks)} |")
    print(f"| redirected and not recorded | {ledger.clicks_lost} |")
    copies = f"with an id for the second time {ledger.repeats}, with a further id {ledger.further}"
    print(f"| calls of webhooks | {ledger.calls}, {copies} |")
    print(f"| events without a delivery that succeeded | {len(ledger.undelivered)} |")
    print(f"| deliveries that the endpoint has not seen | {len(ledger.unseen)} |")
    print(f"| wrong signatures | {len(ledger.unsigned)} |")
    print(
        f"| from an event to its webhook | median {ledger.median:.2f} s, longest {ledger.longest:.1f} s |", flush=True
    )
    print(f"| without a worker | {ledger.away:.0f} s |")
    for cause, waits in sorted(ledger.waits.items()):
        figures = f"{len(waits)}, median {statistics.median(waits):.2f} s, longest {max(waits):.1f} s"
        print(f"| waited for {cause} | {figures} |", flush=True)
    ledger.check()
    assert not wrong, wrong[:3]


def _leases(_options: argparse.Namespace, directory: Path) -> None:
    outcome = kill_during_calls(directory)
    print(f"\n| kill -9 of a worker that calls {len(outcome.late)} webhooks | another one makes the calls |\n|---|---|")
    print(f"| seconds after the end of the lease | {min(outcome.late):.1f} to {max(outcome.late):.1f} |")
    print(f"| calls with each id | {_counts(Counter(f'{count} calls' for count in outcome.calls.values()))} |")
    print(f"| not made in the end, with another id | {len(outcome.not_made)}, {len(outcome.renamed)} |", flush=True)
    outcome.check()


def _servers(options: argparse.Namespace, directory: Path) -> None:
    with Stage(directory, WEB_CONCURRENCY="2") as stage:
        outcome = restart_servers(
            stage,
            options.restarts,
            queue_away=options.queue_away,
            clients=options.clients,
            seconds=options.seconds,
            pause=options.pause,
        )
        _print_books("kill -9 of the servers", outcome.books, outcome.seconds)
        print(f"| kills | {outcome.kills.total()}: {_counts(outcome.kills)} |")
        print(f"| attempts, by their end | {_counts(outcome.fates)} |", flush=True)
        outcome.books.check(redis_forgot=True)
        stage.check_log()


def _outages(options: argparse.Namespace, directory: Path) -> None:
    began = time.monotonic()
    with Stage(directory) as stage:
        ground = Ground(stage)
        pid = stage.relay.pid
        print("\n| server | fault | message | slowest | AUTH | slowest | heals in | connections a second |")
        print("|---|---|---|---|---|---|---|---|")
        for fault in (*POSTGRES, *REDIS, *QUEUE):
            total = Seen()
            for _ in range(options.rounds):
                if time.monotonic() - began < options.seconds:
                    total.add(ground.observe(fault))
            if not total.replies:
                break
            cells = (
                fault.server,
                fault.name,
                _replies(total.replies),
                f"{total.slowest:.2f} s",
                _replies(total.auth_replies),
                f"{total.slowest_auth:.2f} s",
                f"{total.healed:.2f} s",
                f"{total.connections_a_second:.1f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)
            assert total.replies.keys() <= fault.mail, total
            assert total.auth_replies.keys() <= fault.auth, total
        assert (stage.relay.pid, stage.relay.running) == (pid, True)
        books = stage.audit(ground.mails)
        _print_books("all faults of the table", books, time.monotonic() - began)
        books.check()
        stage.check_log()


def _siege(options: argparse.Namespace, directory: Path) -> None:
    room = str(options.slow_clients + 100)
    with Stage(directory, SMTP_RELAY_MAX_CONNECTIONS=room) as stage:
        siege = besiege(stage, options.slow_clients, options.siege_seconds, seed=options.seed)
        stage.check_log()
    print(f"\n| slow clients | {siege.clients}, an octet every {PAUSE_SECONDS:.0f} s |\n|---|---|")
    print(f"| for | {options.siege_seconds:.0f} s |")
    print(f"| open at once | {siege.most_open} |")
    print(f"| connections that they made | {siege.connections} |")
    for farewell, count in siege.farewells.most_common():
        print(f"| sent away with `{farewell}` | {count} |")
    print(f"| memory before and at most | {siege.memory_before / 1e6:.1f} MB, {siege.memory_most / 1e6:.1f} MB |")
    print(f"| a slow client | {siege.octets_each / 1e3:.1f} kB |")
    print(f"| CPU of the relay | {siege.cpu / options.siege_seconds:.1%} of a core |")
    print(f"| mails of others meanwhile | {len(siege.mails)}, all accepted |")
    print(
        f"| the median and slowest of them | {siege.median * 1e3:.1f} ms, {max(siege.mails) * 1e3:.0f} ms |", flush=True
    )


def _auth(options: argparse.Namespace, directory: Path) -> None:
    measured = measure(directory, options.tries, seed=options.seed)
    print(f"\nThe fixed delay is {DELAY_SECONDS * 1e3:.0f} ms here; {options.tries} tries of each.")
    print("\n| key | reply | median | mean | 90 % below | fastest | slowest |\n|---|---|---|---|---|---|---|")
    for times in measured:
        figures = (
            times.median,
            statistics.mean(times.seconds),
            times.ninetieth,
            min(times.seconds),
            max(times.seconds),
        )
        cells = " | ".join(f"{seconds * 1e3:.2f} ms" for seconds in figures)
        print(f"| {times.kind} | {times.reply[:9].decode()} | {cells} |", flush=True)


def _neighbours(options: argparse.Namespace, directory: Path) -> None:
    seconds = options.seconds / 30
    print(f"\n{OTHERS} users without trouble, {seconds:.0f} s each; seconds from the dot to 250.")
    print(
        "\n| trouble of another user | without it: median | 99 % | slowest | beside it | 99 % | slowest | longer by |"
    )
    print("|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for trouble in TROUBLES:
        name = trouble.__name__.replace("_", " ")
        with Stage(directory / trouble.__name__) as stage:
            without, beside = measure_neighbours(stage, trouble, seconds)
            stage.check_log()
        figures = [
            figure for times in (without, beside) for figure in (times.median, times.ninety_ninth, times.slowest)
        ]
        longer = beside.slowest - without.slowest
        cells = " | ".join(f"{figure:.3f}" for figure in (*figures, longer))
        print(f"| {name} | {cells} |", flush=True)
        assert without.refused == beside.refused == 0, f"{name}: mail of others was refused"
        worst = max(worst, longer)
    assert worst <= 1.0, f"mail of others took {worst:.1f} s longer"


def _print_books(title: str, books: Books, seconds: float) -> None:
    print(f"\n| {title} | {seconds:.0f} s |\n|---|---|")
    for field in dataclasses.fields(books):
        value = getattr(books, field.name)
        print(f"| {field.name.replace('_', ' ')} | {len(value) if isinstance(value, list) else value} |")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _replies(counts: dict[bytes, int]) -> str:
    return ", ".join(f"{reply.decode()} ×{count}" for reply, count in sorted(counts.items()))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
