"""Convert errors of servers and of the network to errors with a remedy."""

from __future__ import annotations

import re
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto
from urllib3.exceptions import HTTPError

from reshard.errors import (
    AccessError,
    DataError,
    LockedError,
    MissingInputError,
    OutputError,
    RequestError,
    ReshardError,
    StorageError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_LONGEST_MESSAGE = 300

_KEY = "check the access key ID and the secret access key"
_TOKEN = "renew the credentials; changes to a Secret are picked up without a restart"  # noqa: S105 - advice, not a secret
_IDENTITY = "check the role's trust policy for the issuer and audience of the token in AWS_WEB_IDENTITY_TOKEN_FILE"
_CLOCK = "synchronize this machine's clock"
_POLICY = "allow the operation in the policy of the bucket or role (docs/s3.md lists the minimum permissions)"
_DENIED = {
    "AccessDenied": ("PermissionDenied", _POLICY),
    "AccessForbidden": ("PermissionDenied", _POLICY),
    "AllAccessDisabled": ("PermissionDenied", _POLICY),
    "MethodNotAllowed": ("PermissionDenied", _POLICY),
    "403": ("PermissionDenied", _POLICY),
    "401": ("CredentialsRefused", _KEY),
    "Unauthorized": ("CredentialsRefused", _KEY),
    "InvalidAccessKeyId": ("CredentialsRefused", _KEY),
    "SignatureDoesNotMatch": ("CredentialsRefused", _KEY),
    "AuthFailure": ("CredentialsRefused", _KEY),
    "InvalidToken": ("CredentialsRefused", _TOKEN),
    "InvalidClientTokenId": ("CredentialsRefused", _KEY),
    "InvalidIdentityToken": ("CredentialsRefused", _IDENTITY),
    "IDPRejectedClaim": ("CredentialsRefused", _IDENTITY),
    "XAdminUserNotFound": ("CredentialsRefused", _KEY),
    "ExpiredToken": ("CredentialsExpired", _TOKEN),
    "ExpiredTokenException": ("CredentialsExpired", _TOKEN),
    "TokenRefreshRequired": ("CredentialsExpired", _TOKEN),
    "RequestExpired": ("CredentialsExpired", _CLOCK),
    "RequestTimeTooSkewed": ("CredentialsRefused", _CLOCK),
}
_WRONG_REGION = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_FULL = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "EntityTooLarge"}
_ADDRESS = "check the bucket, prefix and endpoint"
_REFUSED = {
    "InvalidBucketName": _ADDRESS,
    "InvalidURI": _ADDRESS,
    "KeyTooLongError": _ADDRESS,
    "NotImplemented": "use a server that supports the operation",
}
_REGION = "set AWS_REGION, or `region` of the profile (s3.region of the storage in a CheckpointTransform)"
_CA_BUNDLE = "set AWS_CA_BUNDLE, or `ca_bundle` of the profile (s3.caBundleRef of the storage in a CheckpointTransform)"
BUSY = {
    *("429", "503", "RequestLimitExceeded", "ServiceUnavailable", "SlowDown"),
    *("Throttling", "ThrottlingException", "TooManyRequests"),
}
MISSING = {"NoSuchKey", "404", "NotFound"}
PRECONDITION_FAILED = {"PreconditionFailed", "412"}


def without_credentials(text: str) -> str:
    """Return a text without the users, passwords and queries of the URLs in it."""
    return re.sub(r"(//[^\s?]*)\?\S*", r"\1", re.sub(r"//\S*@", "//", text))


def code_of(error: boto.ClientError) -> str:
    """Return the error code of a server, such as "NoSuchKey", or the HTTP status if the response has no body."""
    return str(error.response.get("Error", {}).get("Code", "")) or str(
        error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    )


class InvalidResponseError(boto.BotoCoreError):  # type: ignore[misc]  # botocore comes without types
    """A successful response that lacks a field that all servers send, or that is not what was requested."""

    fmt = "the server's response {problem}"


@contextmanager
def failures(where: str) -> Iterator[None]:
    """Convert errors of botocore in the body to errors of this package, with a remedy and without secrets."""
    try:
        yield
    except boto.ClientError as error:
        raise _of_answer(error, where) from error
    except InvalidResponseError as error:
        fix = "check the endpoint, and that no proxy changes the responses of the server"
        raise StorageError("ResponseInvalid", str(error), where=where, fix=fix) from error
    # An invalid endpoint URL is a ValueError; botocore does not wrap errors that interrupt the body of an error response.
    except (boto.BotoCoreError, HTTPError, ValueError, OSError) as error:
        raise _of_way(error, where) from error


def _of_answer(error: boto.ClientError, where: str) -> ReshardError:  # noqa: PLR0911 - one way out for each kind of answer
    code, status = code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    message = str(error.response.get("Error", {}).get("Message", "")).rstrip(".")[:_LONGEST_MESSAGE]
    what = f"{error.operation_name} failed with {code}" + (f" ({message})" if message and message != code else "")
    if code in _DENIED or status in (401, 403):
        reason, fix = _DENIED.get(code, ("PermissionDenied", _POLICY))
        return AccessError(reason, what, where=where, fix=fix)
    if code == "NoSuchBucket":
        return MissingInputError(
            "BucketMissing", what, where=where, fix="correct the bucket's name or the endpoint, or create the bucket"
        )
    if code in MISSING:
        return MissingInputError("NotFound", "no such object", where=where, fix="check the bucket, prefix and endpoint")
    if code in PRECONDITION_FAILED and (error_of := _OF_A_VERSION.get(error.operation_name)):
        return error_of(where)
    if code in _WRONG_REGION:
        return RequestError("WrongRegion", what, where=where, fix=_REGION)
    if code in _FULL:
        return OutputError("CannotWrite", what, where=where, fix="free or add storage on the server, or raise the quota")
    if code in _REFUSED:
        return RequestError("RequestRefused", what, where=where, fix=_REFUSED[code])
    if code in BUSY:
        return StorageError("ServerBusy", what, where=where, fix="retry later, or with fewer --workers")
    if code == "NoSuchUpload":
        return StorageError("UploadGone", "another run has aborted this upload", where=where, fix="retry")
    return StorageError(
        "RequestFailed", what, where=where, fix="retry; if the error persists, contact the operator of the server"
    )


def _of_way(error: Exception, where: str) -> ReshardError:
    what = without_credentials(str(error)).rstrip(".")[:_LONGEST_MESSAGE]
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the pod a role"
        return AccessError("CredentialsMissing", what, where=where, fix=fix)
    of_file = isinstance(error, OSError) and error.filename
    if of_file or isinstance(error, boto.ProfileNotFound | boto.ConfigNotFound | boto.ConfigParseError):
        fix = "correct the profile, the AWS configuration, or AWS_WEB_IDENTITY_TOKEN_FILE"
        return AccessError("CredentialsMissing", what, where=where, fix=fix)
    if isinstance(error, boto.SSLError):
        return RequestError("CertificateRefused", what, where=where, fix=_CA_BUNDLE)
    if isinstance(error, boto.ValidationError | boto.ParamValidationError | boto.InvalidDNSNameError | ValueError):
        return UsageError(
            "InvalidAddress", what, where=where, fix="use an address like s3://bucket/prefix and an endpoint like https://host"
        )
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError | HTTPError | OSError):
        return StorageError("Unreachable", what, where=where, fix="check the endpoint and the network, then retry")
    return StorageError("RequestFailed", what, where=where, fix="retry")


def stated(answer: Mapping[str, Any], name: str) -> Any:
    """Return a field of a response, or one of its headers.

    Raises:
        InvalidResponseError: the response has no such field.
    """
    if name not in answer:
        raise InvalidResponseError(problem=f"has no {name}")
    return answer[name]


def date_of(answer: dict[str, Any]) -> float | None:
    """Return the server's time in a response, in seconds, or None if the response does not contain it."""
    try:
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
    except (KeyError, ValueError):
        return None


def changed(where: str, how: str = "changed") -> DataError:
    """Return the error for an object that has changed since it was opened."""
    return DataError(
        "SourceChanged",
        f"the object {how} since it was opened",
        where=where,
        fix="wait until nothing writes to the object any more, then retry",
    )


def _replaced(where: str) -> LockedError:
    return LockedError(
        "LockLost", "another run or program has replaced this object", where=where, fix="wait until it has finished, then retry"
    )


# Errors of requests that name a version of an object which is not the current one.
_OF_A_VERSION: dict[str, Callable[[str], ReshardError]] = {
    "GetObject": changed,
    "UploadPartCopy": changed,
    "CopyObject": _replaced,
    "DeleteObject": _replaced,
}
