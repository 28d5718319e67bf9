"""Amazon's queue service as moto imitates it, over real HTTP."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import TYPE_CHECKING

from scripts.services.server import Server

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient  # a module of the stubs alone

#: moto behind gevent's server, which keeps connections open, as Amazon does. Its own closes each after one call, and to
#: connect costs a client more than to call. And at each message that it is given moto asks several times for each one
#: that it holds what time it is, by way of a calendar: a tenth of a second for a call, once there are two thousand.
_MAIN = """
from gevent import monkey
monkey.patch_all()
import sys
import time
from gevent.pywsgi import WSGIServer
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sqs import models
models.unix_time_millis = lambda: time.time() * 1000
WSGIServer((sys.argv[1], int(sys.argv[2])), DomainDispatcherApplication(create_backend_app), log=None).serve_forever()
"""


class Sqs(Server):
    """Amazon's queue service as moto imitates it, over real HTTP."""

    name = "moto's server"
    region = "us-east-1"

    @property
    def endpoint(self) -> str:
        """The base URL for boto3's `endpoint_url` and AWS_ENDPOINT_URL."""
        return f"http://{self.host}:{self.port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a process needs in its environment so that its boto3 talks to this server."""
        return self.environment_for(self.endpoint)

    @classmethod
    def environment_for(cls, endpoint: str) -> dict[str, str]:
        """The same for a server at that URL."""
        return {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": cls.region,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def create_queue(self, name: str) -> str:
        """Makes a queue and returns its URL; a name that ends in `.fifo` makes a FIFO queue."""
        client = self.client()
        made = (
            client.create_queue(QueueName=name, Attributes={"FifoQueue": "true"})
            if name.endswith(".fifo")
            else client.create_queue(QueueName=name)
        )
        return made["QueueUrl"]

    def client(self) -> SQSClient:
        """A boto3 SQS client for this server, whatever the environment says."""
        import boto3  # noqa: PLC0415 - 0.2 s that Postgres and Valkey need not wait for

        return boto3.client(
            "sqs",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 - moto takes any
        )

    def command(self) -> list[str]:
        """See Server."""
        return [sys.executable, "-c", _MAIN, self.host, str(self.port)]

    def answers(self) -> bool:
        """See Server."""
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=2):
            return True
        return False
