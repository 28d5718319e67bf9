"""The requests of SES's SendEmail that its double knows (API version 2), as JSON has them."""

from __future__ import annotations

from typing import TypedDict


class Tag(TypedDict):
    """One of EmailTags."""

    Name: str
    Value: str


class RawContent(TypedDict):
    """The mail, in Base64."""

    Data: str


class Content(TypedDict):
    """The only form of content that the relay sends."""

    Raw: RawContent


class SendEmail(TypedDict, total=False):
    """A request, as the double takes it and as it keeps it: without `Content` then, and with its answer's MessageId."""

    Content: Content
    Destination: dict[str, list[str]]
    EmailTags: list[Tag]
    ConfigurationSetName: str
    MessageId: str


class Answer(TypedDict, total=False):
    """How a call is answered otherwise than as usual: see `scripts.services.ses_double`."""

    status: int
    code: str
    message: str
    silent: bool
    lost: bool
    seconds: float
    raw: str


class Account(TypedDict, total=False):
    """What GetAccount says otherwise than as usual, or how it is answered: see `scripts.services.ses_double`."""

    status: int
    code: str
    seconds: float
    raw: str
    pause: float
    SendQuota: dict[str, float]
    SendingEnabled: bool
    EnforcementStatus: str
    ProductionAccessEnabled: bool


class LedgerFields(TypedDict, total=False):
    """Of a new `scripts.services.ses_ledger.Ledger`."""

    rate: float
    daily: int
    chance: float
    seed: int


class Control(TypedDict, total=False):
    """A POST to /control: see `scripts.services.ses_double`."""

    answers: list[Answer]
    account: Account
    ledger: LedgerFields
    notify: str
    forget: bool


class Figures(TypedDict):
    """What a ledger has counted (`scripts.services.ses_ledger`), and how often GetAccount was called."""

    recipients: int
    calls: int
    too_fast: int
    at_random: int
    most: int
    #: From the first call to the last.
    seconds: float
    asked: int
