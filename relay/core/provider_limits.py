"""What a provider can take: Amazon SES's limits, which the way in and the way out both look at (contract section 3).

The figures are those of SES's public documentation. Sizes are octets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Recipients of one call, To, Cc and Bcc together.
MAX_RECIPIENTS: Final = 50
#: The whole mail as it arrives there, after Base64.
MAX_COMPOSED_OCTETS: Final = 40 * 1024 * 1024

_EXTENSIONS: Final = """
ade adp app asp bas bat cer chm cmd com cpl crt csh der exe fxp gadget hlp hta inf ins isp its js jse ksh lib
lnk mad maf mag mam maq mar mas mat mau mav maw mda mdb mde mdt mdw mdz msc msh msh1 msh2 mshxml msh1xml
msh2xml msi msp mst ops pcd pif plg prf prg reg scf scr sct shb shs sys ps1 ps1xml ps2 ps2xml psc1 psc2 tmp
url vb vbe vbs vps vsmacros vss vst vsw vxd ws wsc wsf wsh xnk
"""
#: File name extensions that SES refuses, in whatever case.
REFUSED_EXTENSIONS: Final = frozenset(_EXTENSIONS.split())

_ONCE_ONLY: Final = """
accept-language archived-at auto-submitted bounces-to comments content-alternative content-base content-class
content-description content-disposition content-duration content-features content-id content-identifier
content-language content-location content-md5 content-return content-transfer-encoding content-type date
delivered-to disposition-notification-options disposition-notification-to dkim-signature domainkey-signature
errors-to from importance in-reply-to keywords list-archive list-help list-id list-owner list-post
list-subscribe list-unsubscribe list-unsubscribe-post message-context message-id mime-version organization
original-encoded-information-types original-from original-message-id original-recipient original-subject
precedence priority references reply-to return-path return-receipt-to sender sensitivity solicitation subject
thread-index thread-topic user-agent vbr-info
"""
#: Header fields (lower case) that may stand once at most; a second one refuses the whole mail.
ONCE_ONLY_FIELDS: Final = frozenset(_ONCE_ONLY.split())


#: What stands around one attachment at most: delimiter, media type, content id; and each character of its name, twice.
_PART_OCTETS: Final = 1_500
_NAME_OCTETS: Final = 25
#: The rest of a mail: header fields, recipients, delimiters.
_OTHER_OCTETS: Final = 100_000
#: Below so many characters a row can't be too large once it is composed, whatever is in it.
_SURELY_SMALL: Final = MAX_COMPOSED_OCTETS // 5


def composed_octets(texts: Sequence[str], base64_characters: int, names: Sequence[str] = ()) -> int:
    """At most so many octets has the mail of a row: its texts, its attachments' Base64 without line ends, their names.

    Encoded text is at most its UTF-8 as Base64; a line of Base64 has 76 characters and two for its end.
    """
    characters = sum(map(len, texts))
    around = len(names) * _PART_OCTETS + sum(map(len, names)) * _NAME_OCTETS
    if characters + base64_characters + around < _SURELY_SMALL:
        return characters * 5 + base64_characters * 2 + around
    encoded = sum(len(text.encode("utf-8", "replace")) + text.count("\n") for text in texts) * 4 // 3
    return (encoded + base64_characters) * 78 // 76 + around + _OTHER_OCTETS


def refused_extension(filename: str) -> str | None:
    """The extension for which SES refuses an attachment of this name, in lower case; None where it takes it."""
    extension = filename.rstrip(" .").rpartition(".")[2].lower() if "." in filename else ""
    return extension if extension in REFUSED_EXTENSIONS else None
