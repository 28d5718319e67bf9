"""What a connection to another server asks of its certificate: the same with every version of Python."""

from __future__ import annotations

import ssl
from typing import Final

#: Set by `ssl.create_default_context` from Python 3.13 on. It refuses the small faults that private authorities make: a
#: certificate without the key identifier of its authority, for instance.
REFUSED_BY_LATER_PYTHON: Final = ssl.VERIFY_X509_STRICT
#: Set by `ssl.create_default_context` from Python 3.13 on. The certificate of a server, or an intermediate one, may be
#: trusted without the root above it.
ACCEPTED_BY_LATER_PYTHON: Final = ssl.VERIFY_X509_PARTIAL_CHAIN


def client_context(cafile: str | None = None) -> ssl.SSLContext:
    """A context that verifies certificate and name, with TLS 1.2 or later.

    `cafile`: the trusted authorities, PEM; None: the authorities that the system trusts. Raises OSError for a file that
    can't be read or has no certificate.
    """
    context = ssl.create_default_context(cafile=cafile)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags = (context.verify_flags | ACCEPTED_BY_LATER_PYTHON) & ~REFUSED_BY_LATER_PYTHON
    return context
