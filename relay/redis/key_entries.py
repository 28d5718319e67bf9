"""API keys in Redis: the entry shared with OpenSend's app, and two of our own beside it (contract section 4).

OpenSend writes the shared entry too, for up to 300 s, and deletes it when a key is revoked in its dashboard. So that
entry says that the key has not been revoked there. The second entry says that Postgres still has the key: only the
relay writes it, for 60 s, after it has asked Postgres. A key counts where both agree.
"""

from __future__ import annotations

from typing import Final

import orjson

from relay.core import metrics
from relay.core.api_keys import KeyRecord, restriction
from relay.core.frozen import frozen
from relay.core.memo import memoised
from relay.core.records import ApiKey
from relay.redis import keys
from relay.redis.protocol import Command

#: The longest that a key is kept in the cache that is shared with OpenSend (contract section 4), in seconds.
KEY_SECONDS: Final = 60
#: How long a key that does not exist is remembered, in seconds.
UNKNOWN_KEY_SECONDS: Final = 10
_KEYS_KNOWN: Final = metrics.CACHE.labels("key", "hit")
_KEYS_UNKNOWN: Final = metrics.CACHE.labels("key", "miss")


@frozen
class CachedKey:
    """What Redis knows about an API key: at most one of the two is the case; neither, and it knows nothing."""

    key: ApiKey | None
    unknown: bool


NOTHING: Final = CachedKey(None, False)


def key_commands(token_hash: str, record: KeyRecord) -> list[Command]:
    """The commands that remember a key that Postgres has just been asked for."""
    key = record.key
    shared, domain, _ = key_names(token_hash)
    document = {
        "apiKeyId": key.id,
        "permission": key.permission,
        "domain": record.domain_column,
        "userId": key.user_id,
    }
    checked = {"column": record.domain_column, "name": key.domain}
    return [
        ("SET", domain, orjson.dumps(checked), "EX", KEY_SECONDS),
        ("SET", shared, orjson.dumps(document), "EX", KEY_SECONDS),
    ]


def counted(cached: CachedKey) -> CachedKey:
    (_KEYS_KNOWN if cached.key is not None or cached.unknown else _KEYS_UNKNOWN).inc()
    return cached


@memoised(entries=1024, octets=200)
def key_names(token_hash: str) -> tuple[bytes, bytes, bytes]:
    """The names of the shared entry, of what Postgres said of its domain, and of the mark of a hash that no key has."""
    octets = token_hash.encode()
    return keys.SHARED_KEY_PREFIX + octets, keys.KEY_DOMAIN_PREFIX + octets, keys.UNKNOWN_KEY_PREFIX + octets


@memoised(entries=2048, octets=1400)
def cached_key(entries: tuple[bytes | None, bytes | None, bytes | None]) -> CachedKey:
    """What the three entries of a key mean, in the order of `key_names`.

    What can't be understood, or was not compared with Postgres within KEY_SECONDS, is as good as nothing.
    """
    shared, domain, unknown = entries
    if shared is None:
        return CachedKey(None, unknown is not None)
    entry = _object(shared)
    key_id, user_id, permission = (entry.get(name) for name in ("apiKeyId", "userId", "permission"))
    column = entry.get("domain")
    if not (isinstance(key_id, str) and isinstance(user_id, str) and isinstance(permission, str) and user_id):
        return NOTHING
    if not (column is None or isinstance(column, str)):
        return NOTHING
    checked = _object(domain)
    if "column" not in checked or checked["column"] != column:
        return NOTHING
    name = checked.get("name")
    if not (name is None or isinstance(name, str)):
        return NOTHING
    return CachedKey(ApiKey(id=key_id, user_id=user_id, permission=permission, domain=restriction(column, name)), False)


def _object(document: bytes | None) -> dict[str, object]:
    try:
        value = orjson.loads(document or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
