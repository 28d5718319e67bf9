"""Amazon SNS as its subscribers see it: signed messages, and the host where certificates and confirmations are.

A double because the real service can't be had here. What it signs, and with what, is as Amazon documents it; its host
has a certificate of a separate authority, which a subscriber that is to accept it is given
(`relay.aws.sns_host.SnsHost`).
"""

from __future__ import annotations

import base64
import datetime
import email
import email.policy
import json
import ssl
import threading
import time
import urllib.request
import uuid
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from scripts.certificate import certificate_pem, key_pem, self_signed
from scripts.services.ses_request import SendEmail

REGION: Final = "us-east-1"
HOST: Final = f"sns.{REGION}.amazonaws.com"
TOPIC: Final = f"arn:aws:sns:{REGION}:123456789012:ses-events"
CERTIFICATE_PATH: Final = "/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
_NOTIFICATION: Final = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
_CONFIRMATION: Final = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")


class SnsDouble:
    """Signs messages, and serves the host: `url_of`, `requests`, `statuses`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = certificate_pem(self_signed(self._key, HOST, days=30))
        #: Whom the host's certificate is from, PEM: itself.
        self.cafile = directory / "sns.pem"
        self.cafile.write_bytes(pem)
        key_path = directory / "sns-key.pem"
        key_path.touch(mode=0o600)
        key_path.write_bytes(key_pem(self._key))
        #: Paths that were asked for, in order; and the status with which the next are answered instead of as usual.
        self.requests: list[str] = []
        self.statuses: list[int] = []
        self._server = _Server(("127.0.0.1", 0), _handler(self, pem))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cafile, key_path)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def notification(self, text: str, **changed: str) -> dict[str, str]:
        """A signed Notification with this Message; members may be given, Subject and SignatureVersion too."""
        return self.signed({"Type": "Notification", **self._members(), "Message": text, **changed}, _NOTIFICATION)

    def confirmation(self, **changed: str) -> dict[str, str]:
        """A signed SubscriptionConfirmation."""
        token = uuid.uuid4().hex
        url = f"https://{HOST}/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token={token}"
        message = {"Type": "SubscriptionConfirmation", **self._members(), "Message": "You have chosen to subscribe …"}
        return self.signed({**message, "Token": token, "SubscribeURL": url, **changed}, _CONFIRMATION)

    def signed(self, message: dict[str, str], names: tuple[str, ...]) -> dict[str, str]:
        """The message with the signature that its SignatureVersion asks for."""
        text = "".join(f"{name}\n{message[name]}\n" for name in names if name != "Subject" or message.get(name))
        digest = hashes.SHA256() if message["SignatureVersion"] == "2" else hashes.SHA1()  # noqa: S303 - as SNS does
        signature = self._key.sign(text.encode(), padding.PKCS1v15(), digest)
        return {**message, "Signature": base64.b64encode(signature).decode()}

    def _members(self) -> dict[str, str]:
        now = datetime.datetime.now(datetime.UTC)
        return {
            "MessageId": str(uuid.uuid4()),
            "TopicArn": TOPIC,
            "Timestamp": now.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "SignatureVersion": "1",
            "SigningCertURL": f"https://{HOST}{CERTIFICATE_PATH}",
        }


def ses_message(word: str, email_id: str, recipients: list[str], **member: object) -> str:
    """What SES writes into a notification for one event of a mail; `member`: more of the event's own object."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    objects: dict[str, tuple[str, dict[str, object]]] = {
        "Send": ("send", {}),
        "Delivery": ("delivery", {"timestamp": now, "recipients": recipients, "smtpResponse": "250 ok"}),
        "Bounce": (
            "bounce",
            {
                "bounceType": "Permanent",
                "bounceSubType": "General",
                "bouncedRecipients": [{"emailAddress": each, "status": "5.1.1"} for each in recipients],
                "timestamp": now,
            },
        ),
        "Complaint": (
            "complaint",
            {"complainedRecipients": [{"emailAddress": each} for each in recipients], "timestamp": now},
        ),
        "DeliveryDelay": ("deliveryDelay", {"delayType": "MailboxFull", "timestamp": now}),
        "Open": ("open", {"ipAddress": "192.0.2.1", "timestamp": now, "userAgent": "Mail"}),
        "Click": ("click", {"ipAddress": "192.0.2.1", "link": "https://x.example/", "timestamp": now}),
        "Reject": ("reject", {"reason": "Bad content"}),
        "RenderingFailure": ("failure", {"errorMessage": "Attribute is missing", "templateName": "t"}),
    }
    name, content = objects[word]
    mail = {
        "timestamp": now,
        "messageId": "0100018f-0000-4000-8000-000000000000-000000",
        "destination": recipients,
        "headersTruncated": False,
        "headers": [{"name": "Subject", "value": "Hello"}, {"name": "X-Entity-ID", "value": email_id}],
        "tags": {"X-Entity-ID": [email_id]},
    }
    return json.dumps({"eventType": word, "mail": mail, name: {**content, **member}})


#: Local parts at `simulator.amazonses.com` → what becomes of a mail to them, after `Send`. All other addresses are as
#: `success` is.
_SIMULATOR: Final[dict[str, tuple[tuple[str, dict[str, object]], ...]]] = {
    "success": (("Delivery", {}),),
    "bounce": (("Bounce", {}),),
    "complaint": (("Delivery", {}), ("Complaint", {})),
    "suppressionlist": (("Bounce", {"bounceSubType": "Suppressed"}),),
    "ooto": (("Delivery", {}), ("Bounce", {"bounceType": "Transient", "bounceSubType": "General"})),
}


class Notifier:
    """Tells what becomes of mails, as SES does: each notification until it is answered 2xx, some time at least."""

    def __init__(self, directory: Path) -> None:
        self.sns = SnsDouble(directory).__enter__()
        #: Where notifications are sent.
        self.url = ""

    def tell(self, request: SendEmail, octets: bytes) -> None:
        """What becomes of a mail that was taken, in a separate thread."""
        threading.Thread(target=self._tell, args=(request, octets), daemon=True).start()

    def _tell(self, request: SendEmail, octets: bytes) -> None:
        headers = email.message_from_bytes(octets, policy=email.policy.compat32)
        recipients = [address for addresses in request["Destination"].values() for address in addresses]
        if request.get("ConfigurationSetName"):  # Send is an event of a configuration set alone
            self._send("Send", headers, request, recipients)
        for address in recipients:
            local, _, domain = address.lower().rpartition("@")
            simulated = local.partition("+")[0] if domain == "simulator.amazonses.com" else "success"
            for word, member in _SIMULATOR.get(simulated, _SIMULATOR["success"]):
                self._send(word, headers, request, [address], **member)

    def _send(self, word: str, headers: Message, request: SendEmail, recipients: list[str], **member: object) -> None:
        message = json.loads(ses_message(word, str(headers["X-Entity-ID"]), recipients, **member))
        message["mail"]["messageId"] = request["MessageId"]
        message["mail"]["headers"] = [{"name": name, "value": str(value)} for name, value in headers.items()]
        message["mail"]["tags"] = {tag["Name"]: [tag["Value"]] for tag in request.get("EmailTags", ())}
        body = json.dumps(self.sns.notification(json.dumps(message))).encode()
        fields = {"Content-Type": "text/plain; charset=UTF-8", "x-amz-sns-message-type": "Notification"}
        for _ in range(60):
            try:
                with urllib.request.urlopen(urllib.request.Request(self.url, body, fields), timeout=15):  # noqa: S310
                    return
            except OSError:
                time.sleep(1.0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True


def _handler(double: SnsDouble, certificate: bytes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            double.requests.append(self.path)
            status = double.statuses.pop(0) if double.statuses else 200
            known = self.path == CERTIFICATE_PATH or self.path.startswith("/?Action=ConfirmSubscription&")
            body = certificate if self.path == CERTIFICATE_PATH else b"<ConfirmSubscriptionResponse/>"
            self.send_response(status if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Requests are no news."""

    return Handler
