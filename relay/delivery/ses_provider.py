"""The provider `ses`: Amazon SES, in the region of each sender's domain."""

from __future__ import annotations

from relay.aws.ses import Ses, SesError
from relay.delivery.content import Held
from relay.delivery.outcome import Outcome, Sent, of_ses_error, of_silence
from relay.delivery.provider import Handover


class SesProvider:
    """Calls SES with connections that are kept, one client a region."""

    name = "ses"
    region: str | None = None

    def __init__(self) -> None:
        self._regions: dict[str, Ses] = {}

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
            return Sent(ses.send(content, destination, tags=tags, configuration_set=handover.configuration_set))
        except SesError as error:
            if error.status:
                return of_ses_error(error.status, error.code, error.message)
            return of_silence(error.code, error.message, began=error.began)

    def close(self) -> None:
        """Closes the connections that are idle."""
        for ses in self._regions.values():
            ses.close()
