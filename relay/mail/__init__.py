"""Raw bytes to a `Message`. flanker is used in this package and nowhere else; nothing here does I/O."""

from relay.mail.message import Fault, Limits, Message, Unusable
from relay.mail.reader import parse

__all__ = ["Fault", "Limits", "Message", "Unusable", "parse"]
