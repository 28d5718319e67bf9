"""The mails that every client is asked to send, and where to send them."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import make_msgid
from typing import Any, Literal

#: No TLS at all, STARTTLS, or TLS from the first octet.
Security = Literal["plain", "starttls", "tls"]


@dataclass(frozen=True, slots=True)
class Person:
    """A mailbox with a display name, both as a person would type them."""

    address: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file to go along."""

    filename: str
    content: bytes
    content_type: str = "application/pdf"


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail as an application hands it to its mail library."""

    subject: str
    to: tuple[Person, ...]
    sender: Person = Person("ann@example.com", "Ann")
    cc: tuple[Person, ...] = ()
    bcc: tuple[Person, ...] = ()
    text: str = "Hello there\n"
    html: str = ""
    attachment: Attachment | None = None

    @property
    def envelope(self) -> list[str]:
        """All recipients."""
        return [person.address for person in (*self.to, *self.cc, *self.bcc)]

    def composed(self) -> EmailMessage:
        """For clients that take a finished message. The Bcc field is in it."""
        message = EmailMessage(policy=SMTP)
        message["From"] = _header([self.sender])
        for name, people in (("To", self.to), ("Cc", self.cc), ("Bcc", self.bcc)):
            if people:
                message[name] = _header(people)
        message["Subject"] = self.subject
        message["Message-ID"] = make_msgid(domain="example.com")
        message.set_content(self.text)
        if self.html:
            message.add_alternative(self.html, subtype="html")
        if self.attachment is not None:
            main, _, sub = self.attachment.content_type.partition("/")
            message.add_attachment(
                self.attachment.content, maintype=main, subtype=sub, filename=self.attachment.filename
            )
        return message

    def as_json(self) -> dict[str, Any]:
        """For the clients that are programs in other languages."""

        def people(group: tuple[Person, ...]) -> list[dict[str, str]]:
            return [{"name": person.name, "address": person.address} for person in group]

        attachment = self.attachment and {
            "filename": self.attachment.filename,
            "content": base64.b64encode(self.attachment.content).decode(),
            "type": self.attachment.content_type,
        }
        return {
            "from": people((self.sender,))[0],
            "to": people(self.to),
            "cc": people(self.cc),
            "bcc": people(self.bcc),
            "subject": self.subject,
            "text": self.text,
            "html": self.html,
            "attachment": attachment,
        }


@dataclass(frozen=True, slots=True)
class Account:
    """What a user types into the settings of a mail client."""

    port: int
    security: Security
    #: The API key.
    password: str
    #: PEM file with the certificate to trust; of no meaning without TLS.
    authority: str
    username: str = "opensend"
    host: str = "localhost"

    def reading(self, authority: str) -> Account:
        """The same with another file of the certificate to trust."""
        return replace(self, authority=authority)

    def as_json(self) -> dict[str, Any]:
        """For the clients that are programs in other languages."""
        return {
            "host": self.host,
            "port": self.port,
            "security": self.security,
            "username": self.username,
            "password": self.password,
            "authority": self.authority,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client told its user."""

    accepted: bool
    said: str


def _header(people: list[Person] | tuple[Person, ...]) -> list[Address]:
    return [Address(person.name, addr_spec=person.address) for person in people]
