"""Raw bytes to a `Message`. flanker is used in this package and nowhere else; nothing here does I/O.

Reader and flanker, 10 MB, are loaded with the first of these names: the way out needs encoded words and none of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.mail.message import Fault, Limits, Message, Unusable
    from relay.mail.reader import parse

__all__ = ["Fault", "Limits", "Message", "Unusable", "parse"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from relay.mail import message, reader  # noqa: PLC0415 - see above

    globals().update({each: getattr(reader if each == "parse" else message, each) for each in __all__})
    return globals()[name]
