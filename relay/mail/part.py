"""One part of a message, by offsets into its raw octets."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as attribute

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
    def is_multipart(self) -> bool:
        """Whether it holds other parts and has no content of its own."""
        return bool(self.children)
