"""Raw bytes to a `Message`. flanker is used in this package and nowhere else; nothing here does I/O."""

import sys

try:
    from relay.mail.message import Fault, Limits, Message, Unusable
    from relay.mail.reader import parse
except ModuleNotFoundError as error:
    if sys.argv[:1] != ["-m"]:  # what `python -m relay.mail` puts there until it has found the program in this package
        raise
    from config import missing_package

    raise SystemExit(missing_package.refuse(error, "python -m relay.mail")) from None

__all__ = ["Fault", "Limits", "Message", "Unusable", "parse"]
