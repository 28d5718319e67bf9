"""`python -m relay.delivery --preview EMAIL-ID`: the octets that would leave for a row. Nothing is sent or changed.

Everything is done as for a delivery up to the call to the provider: recipients that are suppressed by now are left out,
links are tracked, and what the `path` of an attachment names is fetched. What goes to standard output is the mail
itself, with CRLF line ends. An attached message may hold octets that a terminal would act upon, so a terminal gets
nothing.
"""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

import logging
import os
import sys
import uuid
from contextlib import ExitStack

import structlog
from psycogreen.gevent import patch_psycopg

from relay.core.tls_memory import put_tls_into_memory

patch_psycopg()
put_tls_into_memory()

from config import environment
from config.settings import Settings
from relay.core.errors import PostgresUnavailable
from relay.delivery.content import NoRoom
from relay.delivery.deliverer import Deliverer
from relay.delivery.handovers import Handovers
from relay.delivery.large_mails import Busy, LargeMails
from relay.delivery.outcome import Failed
from relay.delivery.row import email_of
from relay.delivery.ses_provider import SesProvider
from relay.delivery.tracking import tracking_of
from relay.delivery.unclear import Unclear
from relay.operator import preflight
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.row_contents import RowContents
from relay.redis.claim_states import ClaimStates
from relay.redis.link import RedisLink


def main(email_id: str) -> int:
    """The exit status: 0 printed, 1 no mail would leave, 2 for wrong settings, no id, or a terminal."""
    logging.disable(logging.CRITICAL)  # what is worth saying is said below
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if os.isatty(1):
        return _say("a mail may hold what a terminal acts upon: send it to a file or through a pipe", 2)
    try:
        wanted = str(uuid.UUID(email_id))
    except ValueError:
        return _say("an email's id is a UUID", 2)
    try:
        return _show(preflight.load(), wanted)
    except environment.WrongSettings as error:
        return _say(str(error), 2)
    except PostgresUnavailable:
        return _say("Postgres does not answer, or refuses", 1)
    except (NoRoom, Busy) as error:
        return _say(f"the spool has no room for it: {error}", 1)


def _show(settings: Settings, email_id: str) -> int:
    database = Database(settings.database_url, statement_seconds=4.5, idle_limit=2)
    outgoing, left = Outgoing(database), LeftRows(database)
    nowhere = ClaimStates(RedisLink(None, verify_tls=True, timeout=1.0, pause=1.0))
    deliverer = Deliverer(
        outgoing,
        SesProvider(),  # never called
        max_attempts=1,
        records_sent=lambda _: False,
        tracking=tracking_of(settings),
        large_mails=LargeMails(RowContents(database), settings.spool_dir, fetches=1),
        handovers=Handovers(nowhere, outgoing, left, service="", index=0, provider="ses"),
        unclear=Unclear(left, settings.unclear),
        pause=lambda _: None,
    )
    try:
        row = outgoing.look(email_id)
        if row is None:
            return _say("there is no email of this id", 1)
        with ExitStack() as files:
            composed = deliverer.preview(email_of(row), files)
            if composed is None:
                return _say("no recipient is left: all are suppressed", 1)
            if isinstance(composed, Failed):
                return _say(f"{composed.code}: {composed.message}", 1)
            for piece in composed.content.pieces():
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            print("recipients: " + ", ".join(map(ascii, composed.recipients)), file=sys.stderr)
        return 0
    finally:
        database.close()


def _say(text: str, status: int) -> int:
    print(f"python -m relay.delivery --preview: {text}", file=sys.stderr)
    return status
