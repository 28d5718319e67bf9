"""Real servers for development, tests and benchmarks: Postgres and Valkey out of their wheels, SQS by moto's server.

Nothing here serves production. Every server listens on 127.0.0.1 only, on a free port, and asks for a password where
its protocol knows one, because a machine has other users. A server dies with the thread that started it where the
kernel can arrange that (Linux); what is left over all the same, the next start in the same directory ends.

    with Postgres(directory) as postgres, Valkey(other_directory) as valkey:
        run(DATABASE_URL=postgres.url(), REDIS_URL=valkey.url)
"""

from scripts.services.postgres import Postgres
from scripts.services.relay import Delivery, Relay, Web
from scripts.services.server import Server, ServiceFailed, free_port, start_together
from scripts.services.ses import Ses
from scripts.services.sqs import Sqs
from scripts.services.valkey import Valkey
from scripts.services.webhook_sink import Hook, WebhookService, WebhookSink, WebhookWorker

__all__ = [
    "Delivery",
    "Hook",
    "Postgres",
    "Relay",
    "Server",
    "ServiceFailed",
    "Ses",
    "Sqs",
    "Valkey",
    "Web",
    "WebhookService",
    "WebhookSink",
    "WebhookWorker",
    "free_port",
    "start_together",
]
