"""The provider `ses`: Amazon SES, in the region of each sender's domain."""

from __future__ import annotations

import structlog

from relay.aws.ses import Ses, SesError
from relay.aws.ses_account import SesAccount
from relay.delivery.account import UNTOLD, Account, account_of
from relay.delivery.content import Held
from relay.delivery.outcome import Outcome, Sent, of_ses_error, of_silence
from relay.delivery.provider import Handover

log = structlog.get_logger(__name__)


class SesProvider:
    """Calls SES with connections that are kept, one client a region."""

    name = "ses"
    region: str | None = None

    def __init__(self) -> None:
        self._regions: dict[str, Ses] = {}
        self._accounts: dict[str, SesAccount] = {}

    def send(self, handover: Handover) -> Outcome:
        """As `relay.delivery.provider.Provider` says."""
        try:
            ses = self._regions.get(handover.region)
            if ses is None:
                ses = self._regions[handover.region] = Ses(handover.region)
            destination = {
                name: list(addresses)
                for name, addresses in (
                    ("ToAddresses", handover.to),
                    ("CcAddresses", handover.cc),
                    ("BccAddresses", handover.bcc),
                )
                if addresses
            }
            tags = {"X-Entity-ID": handover.email_id}
            content = handover.content.octets if isinstance(handover.content, Held) else handover.content
            message_id = ses.send(
                content,
                destination,
                tags=tags,
                configuration_set=handover.configuration_set,
                ready=handover.permit.use if handover.permit is not None else None,
            )
            return Sent(message_id)
        except SesError as error:
            if error.status:
                return of_ses_error(error.status, error.code, error.message)
            return of_silence(error.code, error.message, began=error.began)

    def account(self, region: str) -> Account | None:
        """What SES says of the account in a region; None: it can't be asked just now."""
        asked = self._accounts.get(region)
        if asked is None:
            asked = self._accounts[region] = SesAccount(region)
        try:
            account = account_of(asked.ask())
            if account.rate or account.off:
                return account
            # A gateway's page, half an answer, or one of another service: the rate that was known last stays.
            log.warning("account_unknown", region=region, code="NoRate")
            return None
        except SesError as error:
            said = of_ses_error(error.status, error.code, error.message) if error.status else None
            log.warning("account_unknown", region=region, code=error.code)
            return UNTOLD if said is not None and said.kind == "denied" else None

    def close(self) -> None:
        """Closes the connections that are idle."""
        for ses in self._regions.values():
            ses.close()
