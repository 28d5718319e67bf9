"""An SQS queue, as far as sending to it goes: SendMessageBatch in the JSON protocol that boto3 itself uses.

`./scripts/bench --only publishing` measures what it costs: it is paid for every ten messages that the relay accepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from relay.aws.service import AwsService, CallError, Response
from relay.core.errors import QueueUnavailable

#: Entries that one SendMessageBatch takes.
MAX_ENTRIES: Final = 10

Entry = dict[str, object]
#: An answer. Only the action says of which types its members are.
Document = Mapping[str, object]


def objects(value: object) -> list[Document]:
    """The objects of a list in an answer; none where there is no list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


class Queue:
    """Sends to one queue, and asks it. Every call is tried once."""

    def __init__(
        self,
        url: str,
        region: str,
        *,
        open_seconds: float = 15.0,
        connect_seconds: float = 2.0,
        call_seconds: float = 7.0,
    ) -> None:
        """The times are those of `relay.aws.service.AwsService`."""
        self.url = url
        self._service = AwsService(
            "sqs",
            region,
            path="/",
            open_seconds=open_seconds,
            connect_seconds=connect_seconds,
            call_seconds=call_seconds,
        )

    @property
    def fifo(self) -> bool:
        """Whether entries need MessageGroupId and MessageDeduplicationId."""
        return self.url.endswith(".fifo")

    def open(self, seconds: float) -> None:
        """Looks up credentials and endpoint ahead of the first call, which takes 0.1 s of CPU.

        Raises QueueUnavailable, after so many seconds at the latest; then a call does it.
        """
        try:
            self._service.open(seconds)
        except CallError as error:
            raise QueueUnavailable(error.code) from None

    def send(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Sends at most MAX_ENTRIES, each with a different `Id`. Returns those that failed: Id → code.

        Raises QueueUnavailable when all failed together; with `unclear` they may have been taken all the same.
        """
        answer = self.call("SendMessageBatch", {"Entries": entries})
        taken = {str(entry.get("Id")) for entry in objects(answer.get("Successful"))}
        codes = {str(entry.get("Id")): str(entry.get("Code")) for entry in objects(answer.get("Failed"))}
        ids = [str(entry["Id"]) for entry in entries]
        return {entry_id: codes.get(entry_id, "NotMentioned") for entry_id in ids if entry_id not in taken}

    def call(self, action: str, parameters: Mapping[str, object]) -> Document:
        """One action of SQS's API on this queue: its answer. Raises QueueUnavailable."""
        response = self._call(action, parameters)
        if response.status != 200:
            raise QueueUnavailable(response.code, unclear=response.status >= 500 and response.status != 503)
        return response.document

    def probe(self) -> None:
        """Asks what can be asked without sending anything: is the queue there, and may it be sent to.

        Raises QueueUnavailable. SQS refuses a batch without entries, after it has looked at the caller's rights. That
        the queue is there is asked for by itself, where the caller may ask that.
        """
        response = self._call("GetQueueAttributes", {"AttributeNames": ["QueueArn"]})
        if response.status != 200 and "AccessDenied" not in response.code:
            raise QueueUnavailable(response.code)
        response = self._call("SendMessageBatch", {"Entries": []})
        if response.status != 200 and "EmptyBatchRequest" not in response.code:
            raise QueueUnavailable(response.code)

    def await_answer(self) -> None:
        """Returns when an answer of the queue arrives, whatever it says, to a call that sends nothing.

        Raises QueueUnavailable.
        """
        response = self._call("SendMessageBatch", {"Entries": []})
        if response.status >= 500:
            raise QueueUnavailable(response.code)

    def close(self) -> None:
        """Closes the connections that are idle."""
        self._service.close()

    def _call(self, action: str, parameters: Mapping[str, object]) -> Response:
        """The response to one call. Raises QueueUnavailable."""
        body = orjson.dumps({"QueueUrl": self.url, **parameters})
        fields = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": f"AmazonSQS.{action}"}
        try:
            return self._service.call(body, fields)
        except CallError as error:
            raise QueueUnavailable(error.code, unclear=error.unclear) from None
