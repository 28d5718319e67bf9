"""What an attachment is called: one path component that any file system takes."""

from __future__ import annotations

import re
from mimetypes import MimeTypes

#: Characters, extension included (contract section 3).
MAX_LENGTH = 255
#: A longer "extension" is a sentence with a full stop in it.
_MAX_EXTENSION = 20

#: C0 and C1 controls, line and paragraph separators, and what turns a name around to hide its extension.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_SEPARATORS = re.compile(r"[/\\]")
_BLANKS = re.compile(r"\s{2,}")

_EXTENSIONS = {
    "application/gzip": ".gz",
    "application/json": ".json",
    "application/ms-tnef": ".dat",
    "application/msword": ".doc",
    "application/octet-stream": ".bin",
    "application/pdf": ".pdf",
    "application/pgp-encrypted": ".pgp",
    "application/pgp-keys": ".asc",
    "application/pgp-signature": ".asc",
    "application/pkcs7-mime": ".p7m",
    "application/pkcs7-signature": ".p7s",
    "application/rtf": ".rtf",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.ms-powerpoint": ".ppt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/x-pkcs7-mime": ".p7m",
    "application/x-pkcs7-signature": ".p7s",
    "application/xml": ".xml",
    "application/zip": ".zip",
    "audio/mpeg": ".mp3",
    "audio/mp4": ".m4a",
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "image/bmp": ".bmp",
    "image/gif": ".gif",
    "image/heic": ".heic",
    "image/jpeg": ".jpg",
    "image/jpg": ".jpg",
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "image/tiff": ".tif",
    "image/webp": ".webp",
    "message/disposition-notification": ".txt",
    "message/feedback-report": ".txt",
    "message/global": ".eml",
    "message/rfc822": ".eml",
    "text/calendar": ".ics",
    "text/css": ".css",
    "text/csv": ".csv",
    "text/enriched": ".txt",
    "text/html": ".html",
    "text/markdown": ".md",
    "text/plain": ".txt",
    "text/rfc822-headers": ".txt",
    "text/richtext": ".rtx",
    "text/rtf": ".rtf",
    "text/vcard": ".vcf",
    "text/x-vcard": ".vcf",
    "text/xml": ".xml",
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
}


#: The media type of an extension, whatever this machine knows of others. None for text: it would have no charset.
_TYPES = {
    **{extension: kind for extension, kind in MimeTypes().types_map[True].items() if not kind.startswith("text/")},
    **{
        extension: kind
        for kind, extension in _EXTENSIONS.items()
        if extension not in (".txt", ".bin", ".dat", ".eml", ".asc", ".tif") and not kind.startswith("text/")
    },
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".tif": "image/tiff",
    ".wav": "audio/wav",
    ".p7m": "application/pkcs7-mime",
    ".p7s": "application/pkcs7-signature",
}


def media_type(name: str) -> str:
    """The media type of a name's extension; empty where it has none, or that of text."""
    _, dot, extension = name.rpartition(".")
    return _TYPES.get(f".{extension.lower()}", "") if dot and len(extension) <= _MAX_EXTENSION else ""


def clean(name: str) -> str:
    """`name` without directories and control characters, at most MAX_LENGTH characters, its extension kept; empty if
    nothing is left.
    """
    if name.isascii() and name.isprintable() and len(name) <= MAX_LENGTH and "/" not in name and "\\" not in name:
        name = name.strip()
        return "" if name in (".", "..") else name
    name = _CONTROLS.sub("", name)
    component = next((piece for piece in reversed(_SEPARATORS.split(name)) if piece.strip() not in ("", ".", "..")), "")
    component = component.strip()
    if len(component) <= MAX_LENGTH:
        return component
    stem, dot, extension = component.rpartition(".")
    if stem and dot and len(extension) <= _MAX_EXTENSION:
        return stem[: MAX_LENGTH - 1 - len(extension)] + "." + extension
    return component[:MAX_LENGTH]


def for_message(subject: str) -> str:
    """The name of a message that is attached to another: its subject, or `message`."""
    stem = _BLANKS.sub(" ", _SEPARATORS.sub("_", _CONTROLS.sub(" ", subject))).strip(" .")
    return (stem[: MAX_LENGTH - 4].rstrip() or "message") + ".eml"


def for_type(media_type: str) -> str:
    """The name of an attachment that has none."""
    if media_type in _EXTENSIONS:
        return "attachment" + _EXTENSIONS[media_type]
    return "attachment" + (".txt" if media_type.startswith("text/") else ".bin")
