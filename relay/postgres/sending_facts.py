"""What is looked up for a mail before it may leave: sender's domain, suppressed recipients (contract section 6).

For many mails in one statement.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from relay.core.frozen import frozen
from relay.core.spellings import spellings
from relay.postgres.driver import Cursor, Row

# Domains: the contract names no index for them, and without one all mails of a statement are looked up in one pass.
# Suppressions: LATERAL, one look into an index for each, whatever the statistics say of the table's size; OFFSET 0
# keeps it so.
_STATEMENT: Final = """
(SELECT DISTINCT ON (asked.number, asked.name) asked.number, asked.name, NULL AS reason,
       coalesce(extract(epoch FROM d.created_at)::float8, 'Infinity') AS created, d.id::text, d.region,
       d.ses_configuration_set_name, d.track_clicks, d.track_opens, d.tracking_subdomain, d.name
  FROM unnest(%(askers)s::int[], %(users)s::text[], %(names)s::text[]) AS asked (number, user_id, name)
  JOIN domains d ON d.user_id = asked.user_id AND lower(d.name) = asked.name
 ORDER BY asked.number, asked.name, d.created_at)
UNION ALL
SELECT asked.number, s.email, s.reason, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM unnest(%(owners)s::int[], %(owners_users)s::text[], %(mailboxes)s::text[]) AS asked (number, user_id, email)
 CROSS JOIN LATERAL (
   SELECT email_suppressions.email, coalesce(email_suppressions.reason, '') AS reason FROM email_suppressions
    WHERE email_suppressions.user_id = asked.user_id AND email_suppressions.email = asked.email OFFSET 0) AS s"""


@frozen
class SendingDomain:
    """What the domain of From says about sending and tracking."""

    id: str
    region: str
    configuration_set: str | None
    track_clicks: bool
    track_opens: bool
    tracking_subdomain: str | None
    name: str


@frozen
class MailAsked:
    """Of which mail the facts are looked up. `names`: of its sender's domain, in lower case, in both forms (A-labels
    and U-labels). `mailboxes`: its recipients, in comparison form.
    """

    user_id: str
    names: Sequence[str]
    mailboxes: Collection[str]


@frozen
class Facts:
    """Of one mail. `suppressed`: those of the recipients that may get no mail by now → reason."""

    domain: SendingDomain | None
    suppressed: dict[str, str]


def find(cursor: Cursor, asked: Sequence[MailAsked]) -> list[Facts]:
    """The facts of each mail, in the same order. Of several domains with one of the names the oldest counts."""
    users = list(dict.fromkeys(each.user_id for each in asked))
    numbers = {user: number for number, user in enumerate(users)}
    domains = dict.fromkeys((numbers[each.user_id], name) for each in asked for name in each.names)
    spelled = dict.fromkeys(
        (numbers[each.user_id], spelling)
        for each in asked
        for mailbox in each.mailboxes
        for spelling in spellings(mailbox)
    )
    values = {
        "askers": [number for number, _ in domains],
        "users": [users[number] for number, _ in domains],
        "names": [name for _, name in domains],
        "owners": [number for number, _ in spelled],
        "owners_users": [users[number] for number, _ in spelled],
        "mailboxes": [spelling for _, spelling in spelled],
    }
    cursor.execute(_STATEMENT, values)
    found: dict[tuple[int, str], tuple[float, SendingDomain]] = {}
    reasons: dict[tuple[int, str], str] = {}
    rows: list[Row] = cursor.fetchall()
    for number, text, reason, created, domain_id, region, configuration_set, clicks, opens, subdomain, name in rows:
        if reason is not None:
            reasons[number, text] = reason
            continue
        domain = SendingDomain(
            id=domain_id,
            region=region,
            configuration_set=configuration_set,
            track_clicks=clicks,
            track_opens=opens,
            tracking_subdomain=subdomain,
            name=name,
        )
        found[number, text] = created, domain
    return [_facts_of(each, numbers[each.user_id], found, reasons) for each in asked]


def _facts_of(
    asked: MailAsked,
    number: int,
    domains: dict[tuple[int, str], tuple[float, SendingDomain]],
    reasons: dict[tuple[int, str], str],
) -> Facts:
    candidates = [domains[number, name] for name in asked.names if (number, name) in domains]
    domain = min(candidates, key=lambda candidate: candidate[0])[1] if candidates else None
    suppressed = {}
    if reasons:
        for mailbox in asked.mailboxes:
            for spelling in spellings(mailbox):
                if (number, spelling) in reasons:
                    suppressed[mailbox] = reasons[number, spelling]
    return Facts(domain, suppressed)
