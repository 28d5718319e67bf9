"""Why there is no connection to Redis, in words: see `relay.core.causes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relay.core.causes import in_words

#: Names in a summary of `config.redaction` → what we say.
_MEANINGS: Final[Mapping[str, str]] = {
    "ClusterMode": "is a Redis Cluster, which is not supported: the relay's scripts need a single server",
    "SSLCertVerificationError": (
        "its TLS certificate can't be verified; if your platform uses self-signed ones, set"
        " SMTP_RELAY_REDIS_TLS_VERIFY=false"
    ),
    "SilentTls": "TLS is not answered: a server without TLS is redis:// in REDIS_URL, not rediss://",
    "SSLError": "TLS could not be established: a server without TLS is redis:// in REDIS_URL, not rediss://",
    "NotRedis|InvalidResponse": (
        "what answers there does not speak Redis's protocol; a server with TLS is rediss:// in REDIS_URL"
    ),
    "AuthenticationError|NoPermissionError|NOAUTH|WRONGPASS": "user or password is wrong",
    "BusyLoadingError|LOADING": "it is loading its data",
    "MASTERDOWN|CLUSTERDOWN": "it has lost the server that it is a replica of",
    "READONLY|ReadOnlyError": "it is a replica, which takes no writes",
    "MaxClientsError": "it has no connection left",
}
#: The same of an error that says no more than its name.
_OTHERS: Final[Mapping[str, str]] = {"ConnectionError": "the server closed the connection"}


def redis_cause(summary: str) -> str:
    """Why there is no connection to Redis. `summary`: of the error, by `config.redaction`."""
    return in_words(summary, _MEANINGS, _OTHERS)
