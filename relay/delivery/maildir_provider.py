"""The provider `maildir`: each mail becomes an .eml file. For development, and only where it is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from relay.delivery.outcome import Failed, Outcome, Sent, Verdict
from relay.delivery.provider import Handover


class MaildirProvider:
    """Writes `new/<email id>.eml` below a folder, whole or not at all (the rename of maildir(5))."""

    name = "maildir"
    region: str | None = "maildir"

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        for name in ("tmp", "new", "cur"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)

    def send(self, handover: Handover) -> Outcome:
        """As `relay.delivery.provider.Provider` says. The envelope stands in X-Envelope- fields before the mail."""
        envelope = [("From", handover.sender), *(("To", to) for to in (*handover.to, *handover.cc, *handover.bcc))]
        fields = "".join(f"X-Envelope-{name}: {address}\r\n" for name, address in envelope)
        written = self._folder / "tmp" / handover.email_id
        try:
            with written.open("wb") as file:
                file.write(fields.encode("utf-8", "replace"))
                for piece in handover.content.pieces():
                    file.write(piece)
            written.replace(self.path_of(handover.email_id))
        except OSError as error:
            reason = errno.errorcode.get(error.errno or 0, "OSError")
            return Failed(Verdict.NOT_THIS_MAIL, reason, os.strerror(error.errno or 0), 5.0)
        return Sent(f"maildir-{handover.email_id}")

    def path_of(self, email_id: str) -> Path:
        """The file of a mail."""
        return self._folder / "new" / f"{email_id}.eml"

    def close(self) -> None:
        """Nothing is held open."""
