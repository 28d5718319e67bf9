"""One part of a message, by offsets into its raw octets."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as attribute

from relay.mail import charset
from relay.mail.description import Description


@dataclass(slots=True)
class Part:
    """`raw[start:body]` is its header block, `raw[body:end]` its body. `children` is empty but for a multipart."""

    about: Description
    start: int
    body: int
    end: int
    children: list[Part] = attribute(default_factory=list)

    @property
    def media_type(self) -> str:
        """`type/subtype`, lower case, valid by RFC 2045."""
        return self.about.content_type.value

    @property
    def declared_charset(self) -> str:
        """The label of the first charset in it that says what octets above 127 are, but for UTF-8; empty without one.

        Raw text in headers that isn't UTF-8 is likely to be in it.
        """
        label = self.about.charset_label or self.about.content_type.texts.get("charset", "")
        if label and charset.codec(label) is not None:
            return label
        return next(filter(None, (child.declared_charset for child in self.children)), "")

    @property
    def is_multipart(self) -> bool:
        """Whether it holds other parts, and no content itself."""
        return bool(self.children)
