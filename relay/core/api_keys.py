"""API keys as Postgres and the shared cache entry have them (contract sections 3 and 4)."""

from __future__ import annotations

import uuid
from typing import Final

from relay.core.address import BadAddress, normalise_domain
from relay.core.frozen import frozen
from relay.core.records import ApiKey

#: A restriction that no domain can meet: `!` is in none. For keys whose `domain` names nothing that we can find.
NO_DOMAIN: Final = "!"


@frozen
class KeyRecord:
    """An API key as Postgres has it: for use, and as the shared cache entry of contract section 4 holds it."""

    key: ApiKey
    #: The raw column: a domain name, the uuid of a domain, or nothing.
    domain_column: str | None


def is_domain_id(column: str) -> bool:
    """Whether api_keys.domain holds the uuid of a domain rather than a name."""
    try:
        return len(column.strip()) == 36 and bool(uuid.UUID(column.strip()))
    except ValueError:
        return False


def restriction(column: str | None, found_name: str | None) -> str | None:
    """The domain that From must belong to. `found_name`: of the domain whose uuid the column holds, if that exists.

    None only where the column is empty: a restriction that can't be understood lets nothing through.
    """
    if not column:
        return None
    name = found_name if is_domain_id(column) else column
    return (_name_or_none(name) if name else None) or NO_DOMAIN


def _name_or_none(name: str) -> str | None:
    try:
        return normalise_domain(name.strip())
    except BadAddress:
        return None
