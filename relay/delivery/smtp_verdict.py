"""What a reply of a smart host means for the mail: what caused it, and whether it is temporary.

    credentials            530, 534, 535, 538, and 503 to MAIL    the host's or ours: everything waits
    quota                  5.4.5                                  the same, for a quarter of an hour
    denied                 5.7.x to MAIL                          the sender's domain waits, or everything
    4xx of the system      to MAIL, DATA and the text; 421        other mails decide (relay.delivery.regions)
                           to RCPT: 451, 452, 4.3.x, 4.4.3, 4.4.5
    4xx of the recipient   to RCPT: any other                     an attempt is used up
    5xx of the system      500, 502, 503, 504, 5.3.x              as 4xx of the system
    any other 5xx                                                 the recipient, or the mail, is refused for good

An enhanced status code (RFC 3463) decides where there is one. The size (5.3.4, 552) is the mail's.
"""

from __future__ import annotations

from typing import Final, Literal

from relay.delivery.outcome import Failed, Scope, Verdict
from relay.delivery.smart_host import AUTH_CODES
from relay.delivery.smtp_client import Reply

Phase = Literal["MAIL", "RCPT", "DATA", "text"]

#: Seconds of the first rest, as with SES (relay.delivery.outcome).
_AWAY: Final = 5.0
_ACCOUNT: Final = 60.0
_QUOTA: Final = 900.0

#: The command was not understood, or not expected: no mail's fault.
_PROTOCOL_CODES: Final = frozenset((500, 502, 503, 504))
#: RFC 5321 section 4.5.3.1.10: 452, and 552 of old servers; X.5.3 by RFC 3463.
_TOO_MANY_CODES: Final = frozenset((452, 552))
_LOCAL_CODES: Final = frozenset((451, 452))
_SYSTEM_STATUS: Final = ("4.3.", "4.4.3", "4.4.5")
#: What other commands are answered with (RFC 5321 section 4.2.3, RFC 4954): HELP, the greeting, QUIT, AUTH. To a
#: mail they are answers to something else.
_OF_OTHERS: Final = frozenset((211, 214, 220, 221, 235, 334))


def is_answer(reply: Reply, phase: Phase) -> bool:
    """Whether it can be the answer to that command, or to the end of the text; else what follows is none, too."""
    return reply.kind in ((3, 4, 5) if phase == "DATA" else (2, 4, 5)) and reply.code not in _OF_OTHERS


def is_too_many(reply: Reply) -> bool:
    """Whether a recipient is refused because there are too many in one transaction, where others were taken."""
    if reply.status:
        return reply.status.endswith(".5.3")
    return reply.code in _TOO_MANY_CODES


def is_local_trouble(reply: Reply) -> bool:
    """Whether a 4xx to RCPT is about the host rather than about this recipient."""
    if reply.status:
        return reply.status.startswith(_SYSTEM_STATUS)
    return reply.code in _LOCAL_CODES


def of_reply(reply: Reply, phase: Phase, message: str) -> Failed:
    """What a reply means that is no yes. `message`: for the row."""
    codes, status = reply.codes, reply.status
    if reply.code in AUTH_CODES or (reply.code == 503 and phase == "MAIL"):
        return Failed(Verdict.NOT_THIS_MAIL, codes, message, _ACCOUNT, "credentials")
    if status == "5.4.5":
        return Failed(Verdict.NOT_THIS_MAIL, codes, message, _QUOTA, "quota")
    if phase == "MAIL" and status.startswith("5.7."):
        return Failed(Verdict.NOT_THIS_MAIL, codes, message, _ACCOUNT, "denied", Scope.SENDER)
    if reply.kind == 4:
        if phase == "RCPT" and not is_local_trouble(reply) and reply.code != 421:
            return Failed(Verdict.PASSING, codes, message, kind="unknown")
        return Failed(Verdict.EITHER, codes, message, _AWAY, "server_error")
    system = reply.code in _PROTOCOL_CODES or (status.startswith("5.3.") and status != "5.3.4")
    if reply.kind != 5 or system:
        return Failed(Verdict.EITHER, codes, message, _AWAY, "server_error")
    return Failed(Verdict.PERMANENT, codes, message, kind="rejected")
