"""Sends one mail with Django's SMTP backend; the order is JSON on standard input."""

from __future__ import annotations

import base64
import json
import smtplib
import sys
from email.utils import formataddr

from django.conf import settings
from django.core.mail import EmailMultiAlternatives


def main() -> int:
    """The exit status."""
    order = json.load(sys.stdin)
    account, spec = order["account"], order["mail"]
    settings.configure(
        EMAIL_HOST=account["host"],
        EMAIL_PORT=account["port"],
        EMAIL_HOST_USER=account["username"],
        EMAIL_HOST_PASSWORD=account["password"],
        EMAIL_USE_TLS=account["security"] == "starttls",
        EMAIL_USE_SSL=account["security"] == "tls",
    )
    people = {field: [formataddr((p["name"], p["address"])) for p in spec[field]] for field in ("to", "cc", "bcc")}
    sender = formataddr((spec["from"]["name"], spec["from"]["address"]))
    message = EmailMultiAlternatives(spec["subject"], spec["text"], sender, **people)
    if spec["html"]:
        message.attach_alternative(spec["html"], "text/html")
    if spec["attachment"]:
        file = spec["attachment"]
        message.attach(file["filename"], base64.b64decode(file["content"]), file["type"])
    try:
        message.send()
    except smtplib.SMTPException as error:
        print(repr(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
