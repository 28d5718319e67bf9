"""How much of everything is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers behind a mode."""

    name: str
    #: How often each measurement is repeated.
    rounds: int
    #: How long each load lasts.
    seconds: float
    #: Messages before anything counts.
    warm_up_messages: int
    #: Messages of a round that publishes.
    published: int
    #: And of one that publishes to moto, which takes longer for a job with each that it holds.
    published_to_moto: int
    #: Messages of a round with a single client.
    alone: int
    #: How long large and small messages compete.
    fairness_seconds: float
    #: Idle connections that are held.
    idle_connections: int
    #: Clients that each send a 39 MB mail at the same moment.
    burst: int
    #: Mails of a round of the delivery worker, and those between which its memory must not grow.
    delivered: int
    delivery_soak: int
    #: Messages of the soak; 0: none.
    soak: int


FULL = Plan(
    name="full",
    rounds=5,
    seconds=6.0,
    warm_up_messages=2_000,
    published=6_000,
    published_to_moto=300,
    alone=1_000,
    fairness_seconds=30.0,
    idle_connections=5_000,
    burst=64,
    delivered=4_000,
    delivery_soak=20_000,
    soak=0,
)

QUICK = Plan(
    name="quick",
    rounds=2,
    seconds=2.0,
    warm_up_messages=500,
    published=1_500,
    published_to_moto=150,
    alone=300,
    fairness_seconds=8.0,
    idle_connections=1_000,
    burst=16,
    delivered=800,
    delivery_soak=4_000,
    soak=0,
)
