"""The names of our keys in Redis (contract section 4): all but OpenSend's `auth:apikey:` begin with `smtp-relay:`.

Names and values are shared with other processes, and so with other releases while one follows the other. FORMAT counts
what they mean. Names without a number are of format 1, that of release 0.1.0. A commit that changes what a name stands
for or what is in a value, raises FORMAT, puts the number into the name (`smtp-relay:2:seen:`), and reads and writes the
format before as well while its entries are kept; or says in the changelog what is not recognised, and how long.
`tests/integration/storage/recorded` has what each format looks like, and the tests beside it hold this code to it.
"""

from __future__ import annotations

from typing import Final

#: What names and values mean.
FORMAT: Final = 1

#: OpenSend's own cache of API keys, by token hash: read and written in its form.
SHARED_KEY_PREFIX: Final = b"auth:apikey:"
#: What Postgres said of a key's domain within the last minute, by token hash.
KEY_DOMAIN_PREFIX: Final = b"smtp-relay:key-domain:"
#: Marks a token hash that no key has.
UNKNOWN_KEY_PREFIX: Final = b"smtp-relay:unknown-key:"

#: One recipient's state, by digest.
SUPPRESSION_ENTRY_PREFIX: Final = b"smtp-relay:suppression:"
#: Which generation of a user's list holds, and in how many buckets, by user id.
SUPPRESSION_MARKER_PREFIX: Final = b"smtp-relay:suppressions:"
#: One bucket of a user's list.
SUPPRESSION_BUCKET_PREFIX: Final = b"smtp-relay:suppressed:"

#: The claims on one message's recipients, by `relay.redis.claims.key_of`.
CLAIM_PREFIX: Final = b"smtp-relay:seen:"

#: Rows whose job may be missing, by the time (unix ms) of their intent.
INTENTS_KEY: Final = b"smtp-relay:jobs:intents"
#: The lock of the process that sweeps the intents, and of the one that looks for overdue rows.
SWEEP_LOCK_KEY: Final = b"smtp-relay:jobs:sweep"
REMIND_LOCK_KEY: Final = b"smtp-relay:jobs:remind"
#: Overdue rows that got a further job, by the time (unix ms) of that.
REMINDED_KEY: Final = b"smtp-relay:jobs:reminded"

#: Words that deliveries of webhooks are due, one for each process that may listen.
WEBHOOK_WAKES_KEY: Final = b"smtp-relay:webhooks:wakes"
#: Clicks and opens, and events of SES, that came while Postgres was away.
KEPT_TRACKING_KEY: Final = b"smtp-relay:web:tracking"
KEPT_SES_KEY: Final = b"smtp-relay:web:ses"

#: Failed log-ins, by origin; refused origins; look-ups in progress; origins from which a key was valid.
AUTH_FAILURES_PREFIX: Final = b"smtp-relay:auth:failures:"
AUTH_REFUSED_PREFIX: Final = b"smtp-relay:auth:refused:"
AUTH_LOOK_PREFIX: Final = b"smtp-relay:auth:look:"
#: Keys of an origin that are being looked up, by the time (unix s) since when.
AUTH_LOOK_UPS_PREFIX: Final = b"smtp-relay:auth:look-ups:"
AUTH_KNOWN_PREFIX: Final = b"smtp-relay:auth:known:"

#: How fast mail may leave by one account, by provider and region.
PACE_PREFIX: Final = b"smtp-relay:pace:"

#: Messages of one minute, by what they are counted for.
RATE_PREFIX: Final = "smtp-relay:rate"

#: The delivery processes, by the time (unix ms) of their last beat; the state of what each has claimed, by its name.
DELIVERY_OWNERS_KEY: Final = b"smtp-relay:delivery:owners"
DELIVERY_CLAIMS_PREFIX: Final = b"smtp-relay:delivery:claims:"


def rate_windows(counted: str) -> tuple[str, str]:
    """The names of the previous window and of the current one, where the `limits` library has them."""
    current = f"{RATE_PREFIX}:{{{counted}}}"
    return f"{current}/-1", current
