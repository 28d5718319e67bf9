"""Our signatures are botocore's, octet by octet."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from hashlib import sha256
from unittest import mock

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from relay.aws import signing
from relay.aws.signing import Keys, Signer

TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40)
VALUES = TEXT.filter(lambda text: text.strip() == text)
NAMES = st.from_regex(r"X-[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True).filter(
    lambda name: name.lower() not in ("x-amzn-trace-id", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256")
)
FIELDS = st.dictionaries(NAMES, VALUES, max_size=4).filter(
    lambda fields: len({n.lower() for n in fields}) == len(fields)
)
PATHS = st.sampled_from(["/", "/v2/email/outbound-emails", "/a b/ä%2F~x/../y//z", "/123/jobs.fifo", ""])
KEYS = st.builds(ReadOnlyCredentials, VALUES, VALUES, st.none() | st.just("") | VALUES)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))


def signed_by_botocore(
    keys: ReadOnlyCredentials, service: str, url: str, method: str, fields: dict[str, str], digest: str, now: datetime
) -> dict[str, str]:
    request = AWSRequest(method, url, headers={**fields, "X-Amz-Content-SHA256": digest})
    with mock.patch("botocore.auth.get_current_datetime", return_value=now):
        SigV4Auth(keys, service, "eu-west-1").add_auth(request)
    return dict(request.headers)


@given(KEYS, st.lists(MOMENTS, min_size=1, max_size=3), PATHS, FIELDS, st.sampled_from(["GET", "POST"]), st.binary())
def test_signatures_are_those_of_botocore(
    keys: ReadOnlyCredentials,
    moments: list[datetime],
    path: str,
    fields: dict[str, str],
    method: str,
    body: bytes,
) -> None:
    """Several calls of one signer, whose key is another one each day."""
    signer = Signer("ses", "eu-west-1", path)
    url = f"https://email.eu-west-1.amazonaws.com{path}"
    fields = {"Host": "email.eu-west-1.amazonaws.com", **fields}
    digest = sha256(body).hexdigest()
    for moment in moments:
        with mock.patch.object(signing.time, "gmtime", return_value=moment.utctimetuple()):
            ours = signer.signed(Keys(keys.access_key, keys.secret_key, keys.token or ""), method, fields, digest)
        assert ours == signed_by_botocore(keys, "ses", url, method, fields, digest, moment)


def test_a_key_that_is_replaced_signs_at_once() -> None:
    signer = Signer("sqs", "eu-west-1", "/")
    fields, digest = {"Host": "sqs.eu-west-1.amazonaws.com"}, sha256(b"").hexdigest()
    for secret in ("first", "second", "first"):
        keys = ReadOnlyCredentials("id", secret, None)
        ours = signer.signed(keys, "POST", fields, digest)
        now = datetime.strptime(ours["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        url = "https://sqs.eu-west-1.amazonaws.com/"
        assert ours == signed_by_botocore(keys, "sqs", url, "POST", fields, digest, now)
        assert abs(now.timestamp() - time.time()) < 600


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_session_there_is_no_token(token: str | None) -> None:
    keys = ReadOnlyCredentials("id", "secret", token)
    assert "X-Amz-Security-Token" not in Signer("ses", "eu-west-1", "/").signed(keys, "POST", {"Host": "x"}, "0" * 64)
