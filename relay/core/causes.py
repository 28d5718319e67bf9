"""Why a service could not be reached, in words of our own.

A library's text can hold any part of a URL, a malformed one's password among them: libpq takes `pa@ss word@host` for
the host `ss word@host` and says that it can't be resolved. To take known parts out of such a text is guessing where
they begin. So no text of a library is printed: it is searched for what it is known to say, and that is said in other
words. Each room that talks to a service has a table for that.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from typing import Final

#: Names of errors, as `config.redaction` writes them → what we say. The first that matches.
_NETWORK: Final[Mapping[str, str]] = {
    "SSLCertVerificationError": "its TLS certificate can't be verified",
    "SSL": "TLS could not be established",
    "ECONNREFUSED|ConnectionRefused": "the connection was refused",
    "gaierror|UnicodeError": "its host name can't be resolved",
    "ENETUNREACH|EHOSTUNREACH": "there is no route to its address",
    "[Tt]ime(d )?[Oo]ut": "it did not answer in time",
    "ECONNRESET|EPIPE|ConnectionReset|BrokenPipe|ConnectionAborted": "the server closed the connection",
    "EMFILE|ENFILE": "this process may open no more files",
}
_ERRNO: Final = re.compile(r"\bE[A-Z0-9]{3,}\b")
_CAPITALS: Final = re.compile("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def in_words(said: str, meanings: Mapping[str, str], others: Mapping[str, str] | None = None) -> str:
    """What was meant by the name of an error, or by a line of such names. Nothing secret may be in `said`.

    `meanings`: of one service, patterns → words; what all services have in common is known here. `others`: the same,
    for names that say less than those.
    """
    known = first_meaning(said, meanings) or first_meaning(said, _NETWORK)
    if known:
        return known
    number = next((name for name in _ERRNO.findall(said) if name in errno.errorcode.values()), None)
    if number is not None:
        return os.strerror(getattr(errno, number)).lower()
    least = first_meaning(said, others or {})
    if least:
        return least
    return f"for a reason that is not known here: {_spelled_out(said)}"


def first_meaning(said: str, meanings: Mapping[str, str]) -> str:
    """The words of the first pattern that is found in what was said, or nothing."""
    return next((meaning for pattern, meaning in meanings.items() if re.search(pattern, said)), "")


def _spelled_out(said: str) -> str:
    """The name of an error without its module, as words: `botocore.exceptions.InvalidRetryModeError` is `invalid retry
    mode`."""
    name = re.split(r" from |\(", said)[0].rpartition(".")[2]
    return _CAPITALS.sub(" ", name.removesuffix("Error").removesuffix("Exception")).lower() or "an error without a name"
