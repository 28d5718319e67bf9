"""Why a call to AWS had no success, in words: see `relay.core.causes`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from relay.core.causes import in_words

#: Codes of AWS, and names of errors of botocore → what we say.
_MEANINGS: Final[Mapping[str, str]] = {
    "NoCredentials|NoAuthToken|CredentialRetrieval|MetadataRetrieval|TokenRetrieval|SSOToken|PartialCredentials"
    "|ProfileNotFound|Config(Parse|NotFound)|Login.*Error|Refresh.*Error|InvalidConfig": (
        "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role"
    ),
    "InvalidRegion|NoRegion|InvalidEndpoint|InvalidURL|UnknownEndpoint|UnknownService|ValueError": (
        "there is no such region or endpoint"
    ),
    "NonExistentQueue|QueueDoesNotExist": "there is no such queue",
    "AccessDenied|NotAuthorized|Unauthorized|Forbidden|KmsAccessDenied": "the role may not do this",
    "InvalidClientTokenId|UnrecognizedClient|Signature|ExpiredToken|InvalidAccessKeyId|MissingAuthenticationToken"
    "|InvalidSecurity|RequestExpired|AuthFailure|OptInRequired": "AWS refuses the credentials",
    "Throttl|TooManyRequests|RequestLimit|SlowDown|OverLimit": "AWS takes no more calls just now",
    "HTTP5|Internal|ServiceUnavailable|ServiceFailure": "the service is in trouble",
    "HTTP[1-4]|HttpParser|Upgrade": "what answers at the endpoint is not the service",
}
#: The same of errors that say no more than their name.
_OTHERS: Final[Mapping[str, str]] = {
    "ConnectionError|HTTPClientError|ConnectionClosed|OSError": "there is no connection to the endpoint"
}
#: Codes that are names of errors of Python and botocore, and say no more than the words.
_NAME_OF_ERROR: Final = re.compile(r"Error$|^NoCredentials$|[. ]")


def call_cause(said: str) -> str:
    """Why a service could not be called over HTTP. `said`: the code of the call, or a summary by `config.redaction`.

    A code of AWS stands behind the words, because its documentation has it.
    """
    words = in_words(said, _MEANINGS, _OTHERS)
    return words if _NAME_OF_ERROR.search(said) or said in words else f"{words} ({said})"
