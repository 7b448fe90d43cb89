"""Errors of S3 servers, and of the network on the way to them, as errors of the right class."""

from __future__ import annotations

import pytest
import urllib3.exceptions as urllib3
from botocore import exceptions as boto

from reshard.errors import (
    AccessError,
    MissingInputError,
    OutputError,
    RequestError,
    ReshardError,
    StorageError,
    UsageError,
)
from reshard.storage.s3.failures import failures
from reshard.storage.s3.retries import retrying


def answer(code: str, status: int = 400) -> boto.ClientError:
    response = {"Error": {"Code": code, "Message": "So it is."}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(response, "PutObject")


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("AccessDenied", AccessError, "PermissionDenied"),
        ("SignatureDoesNotMatch", AccessError, "CredentialsRefused"),
        ("ExpiredToken", AccessError, "CredentialsExpired"),
        ("InvalidIdentityToken", AccessError, "CredentialsRefused"),
        ("RequestTimeTooSkewed", AccessError, "CredentialsRefused"),
        ("NoSuchBucket", MissingInputError, "BucketMissing"),
        ("NoSuchKey", MissingInputError, "NotFound"),
        ("PreconditionFailed", StorageError, "RequestFailed"),
        ("PermanentRedirect", RequestError, "WrongRegion"),
        ("AuthorizationHeaderMalformed", RequestError, "WrongRegion"),
        ("QuotaExceeded", OutputError, "CannotWrite"),
        ("SlowDown", StorageError, "ServerBusy"),
        ("NoSuchUpload", StorageError, "UploadGone"),
        ("InternalError", StorageError, "RequestFailed"),
    ],
)
def test_the_servers_code_decides_the_error(code: str, kind: type[ReshardError], reason: str) -> None:
    with pytest.raises(kind, match=reason) as raised, failures("s3://bucket/key"):
        raise answer(code)
    assert raised.value.where == "s3://bucket/key"


def test_a_refusal_with_an_unknown_code_is_a_refusal() -> None:
    with pytest.raises(AccessError, match="PutObject failed with Quirk"), failures("x"):
        raise answer("Quirk", 403)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (boto.NoCredentialsError(), AccessError),
        (urllib3.ReadTimeoutError(None, "", "Read timed out."), StorageError),
        (boto.ProfileNotFound(profile="x"), AccessError),
        (FileNotFoundError(2, "No such file", "/token"), AccessError),
        (ConnectionResetError(104, "Connection reset"), StorageError),
        (boto.EndpointConnectionError(endpoint_url="x"), StorageError),
        (boto.ConnectTimeoutError(endpoint_url="x"), StorageError),
        (boto.ReadTimeoutError(endpoint_url="x"), StorageError),
        (boto.SSLError(endpoint_url="x", error="y"), RequestError),
        (boto.ParamValidationError(report="x"), UsageError),
        (ValueError("Invalid endpoint: x"), UsageError),
        (boto.DataNotFoundError(data_path="x"), StorageError),
    ],
)
def test_failures_of_the_network_decide_the_error(error: Exception, kind: type[ReshardError]) -> None:
    with pytest.raises(kind), failures("x"):
        raise error


def test_a_truncated_error_response_is_requested_again() -> None:
    answers = [urllib3.ProtocolError("Connection broken"), None]

    def ask() -> str:
        if (error := answers.pop(0)) is not None:
            raise error
        return "found"

    assert retrying(ask) == "found"
