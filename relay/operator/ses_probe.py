"""Could SES be sent to, from here, with these credentials? Asked in each region that a domain names.

GetAccount has the account's state. Whether the role may send raw content is asked with a mail that has no recipient
and no From, which SES refuses after it has looked at the role's rights; so nothing can leave. No text of SES's is
printed: it may name accounts and addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import boto3
import botocore.exceptions
import gevent
from botocore.config import Config

from config import redaction
from relay.aws import credentials
from relay.aws.causes import call_cause
from relay.delivery.account import account_of
from relay.delivery.outcome import Failed, Verdict, of_ses_error
from relay.operator.finding import FAIL, OK, WARN, Finding

_NOTHING: Final = b"X-Entity-ID: check\r\n\r\n"
#: What a failed probe is called, by its class.
_MEANINGS: Final = {
    "credentials": "the credentials are refused",
    "clock": "this machine's clock is wrong",
    "denied": "the role may not call",
    "paused": "sending is paused for the account",
    "suspended": "the account is suspended",
    "quota": "the daily quota is used up",
    "throttled": "too many calls just now",
    "server_error": "SES has an internal error",
    "unreachable": "the server at the endpoint is not SES",
}


def findings(regions: list[str], *, seconds: float) -> Iterator[Finding]:
    """What is wrong with each region, a line each; or one that says that nothing is. `seconds`: for each call."""
    greenlets = [gevent.spawn(lambda region: list(_findings(region, seconds)), region) for region in regions]
    gevent.joinall(greenlets)
    for greenlet in greenlets:
        yield from greenlet.get()


def _findings(region: str, seconds: float) -> Iterator[Finding]:
    credentials.bound_programs()
    try:
        client = boto3.session.Session(region_name=region).client(
            "sesv2",
            config=Config(connect_timeout=seconds, read_timeout=seconds, retries={"total_max_attempts": 1}),
        )
        sending = _refusal(lambda: client.send_email(Content={"Raw": {"Data": _NOTHING}}))
        account: dict[str, object] = {}
        asking = _refusal(lambda: account.update(client.get_account()))
    except Exception as error:  # noqa: BLE001 - botocore asks files, programs and services of others
        yield Finding(FAIL, "ses", f"{region}: {call_cause(redaction.summary(error))}")
        return
    found = list(_account(region, account, asking))
    if sending is not None and sending.verdict not in (Verdict.PERMANENT, Verdict.PASSING):
        found.insert(0, Finding(FAIL, "ses", f"{region}: {_said(sending)}"))
    yield from found
    if all(finding.level != FAIL for finding in found):
        rate = account_of(account).rate
        yield Finding(OK, "ses", f"{region}: takes mail" + (f", {rate:g} recipients a second" if rate else ""))


def _refusal(call: Callable[[], object]) -> Failed | None:
    """What SES said instead of yes."""
    try:
        call()
    except botocore.exceptions.ClientError as error:
        said = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return of_ses_error(status, str(said.get("Code", "")), str(said.get("Message", "")))
    return None


def _account(region: str, account: Mapping[str, object], refused: Failed | None) -> Iterator[Finding]:
    if refused is not None and refused.kind == "denied":
        yield Finding(WARN, "ses", f"{region}: the role may not call ses:GetAccount: its rate and state are unknown")
        return
    if refused is not None:
        yield Finding(WARN, "ses", f"{region}: GetAccount: {_said(refused)}")
        return
    if not account.get("SendingEnabled", True):
        yield Finding(FAIL, "ses", f"{region}: sending is paused for the account")
    if account.get("EnforcementStatus", "HEALTHY") != "HEALTHY":
        level = FAIL if account["EnforcementStatus"] == "SHUTDOWN" else WARN
        yield Finding(level, "ses", f"{region}: SES has put the account under review (EnforcementStatus)")
    if not account.get("ProductionAccessEnabled", True):
        yield Finding(WARN, "ses", f"{region}: the account is in SES's sandbox: verified recipients only")
    if account_of(account).left == 0:
        yield Finding(WARN, "ses", f"{region}: the daily quota is used up")


def _said(failed: Failed) -> str:
    meaning = _MEANINGS.get(failed.kind, "refused")
    return f"{meaning} {failed.action}" if failed.action else f"{meaning} ({failed.code})"
