"""Messages of Amazon SNS as it POSTs them, and whether they are its own (contract section 8)."""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA1, SHA256

from relay.core import json_document
from relay.core.frozen import frozen

NOTIFICATION: Final = "Notification"
SUBSCRIPTION: Final = "SubscriptionConfirmation"
UNSUBSCRIPTION: Final = "UnsubscribeConfirmation"

#: What is signed: the names in this order, each with its value; Subject only where there is one.
_SIGNED: Final[Mapping[str, tuple[str, ...]]] = {
    NOTIFICATION: ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    SUBSCRIPTION: ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    UNSUBSCRIPTION: ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}
_OPTIONAL: Final = ("Subject",)
#: Characters of a MessageId: it becomes `email_events.source_id`.
_MOST_MESSAGE_ID: Final = 255


class Malformed(Exception):
    """No message of SNS. The text says why; nothing of the message is in it."""


@frozen
class SnsMessage:
    """A message whose signature has not been verified. `text`: its Message; `signed`: the octets that are signed."""

    type: str
    message_id: str
    topic: str
    text: str
    certificate_url: str
    version: str
    signature: bytes
    signed: bytes
    subscribe_url: str


def parse(body: bytes, type_header: str | None) -> SnsMessage:
    """What was POSTed. `type_header`: the field x-amz-sns-message-type; None where it is absent. Raises Malformed."""
    try:
        document = json_document.loads(body)
    except ValueError:
        raise Malformed("the body is no JSON") from None
    if not isinstance(document, dict):
        raise Malformed("the body is no JSON object")
    kind = _text(document, "Type")
    names = _SIGNED.get(kind)
    if names is None or not document.get("Signature"):
        raise Malformed("no signature: turn raw message delivery off")
    if type_header is not None and type_header != kind:
        raise Malformed("the field x-amz-sns-message-type is not the Type of the message")
    values = [(name, _text(document, name)) for name in names if name not in _OPTIONAL or document.get(name)]
    message_id = _text(document, "MessageId")
    if not message_id or len(message_id) > _MOST_MESSAGE_ID:
        raise Malformed("no MessageId")
    try:
        signature = b64decode(_text(document, "Signature"), validate=True)
        signed = "".join([f"{name}\n{value}\n" for name, value in values]).encode()
    except (NotBase64, ValueError):  # UnicodeEncodeError is the latter
        raise Malformed("a signature that is no Base64, or half of a surrogate pair") from None
    return SnsMessage(
        type=kind,
        message_id=message_id,
        topic=_text(document, "TopicArn"),
        text=_text(document, "Message"),
        certificate_url=_text(document, "SigningCertURL"),
        version=_text(document, "SignatureVersion"),
        signature=signature,
        signed=signed,
        subscribe_url=_text(document, "SubscribeURL") if kind == SUBSCRIPTION else "",
    )


def is_signed_by(message: SnsMessage, key: RSAPublicKey) -> bool:
    """Whether the signature is that of this key, in one of the versions of SNS's signatures."""
    digests = {"1": SHA1(), "2": SHA256()}  # noqa: S303 - version 1 is SNS's default
    digest = digests.get(message.version)
    if digest is None:
        return False
    try:
        key.verify(message.signature, message.signed, PKCS1v15(), digest)
    except InvalidSignature:
        return False
    return True


def _text(document: Mapping[str, object], name: str) -> str:
    value = document.get(name, "")
    if not isinstance(value, str):
        raise Malformed("a member that is no text")
    return value
