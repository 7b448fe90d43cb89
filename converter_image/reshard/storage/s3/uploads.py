"""Unfinished multipart uploads. They cost as much as objects, but listings of objects do not contain them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto

from reshard.parallel import parallel
from reshard.storage.s3.checksums import create_upload
from reshard.storage.s3.failures import MISSING, code_of, date_of, failures, stated

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from botocore.client import BaseClient

# The uploads of fewer keys are listed key by key.
_FEWEST_LISTED_TOGETHER = 32
_GONE = {"NoSuchUpload", *MISSING}


class Uploads:
    """The unfinished uploads below one prefix of a bucket.

    Args:
        client: S3 client.
        bucket: name of the bucket.
        prefix: common prefix of all keys. Empty means the whole bucket.
        probe: key below the prefix for an upload that tests what the server lists.
        clock: function that returns the server's time in seconds, given the time in a response, if any.
    """

    def __init__(self, client: BaseClient, bucket: str, prefix: str, probe: str, clock: Callable[[float | None], float]) -> None:
        self._client, self._bucket, self._prefix, self._probe, self._clock = client, bucket, prefix, probe, clock

    def abort_stale(self, keys: Collection[str], *, silent: float) -> None:
        """Abort the uploads of exactly these keys to which nothing was added for `silent` seconds."""
        if len(keys) >= _FEWEST_LISTED_TOGETHER and (found := self._listed_together(keys)) is not None:
            for _ in parallel(lambda upload: self._abort_if_stale(upload, silent), found):
                pass
            return
        for _ in parallel(lambda key: self._abort_of_key(key, silent), keys):
            pass

    def _listed_together(self, keys: Collection[str]) -> list[dict[str, Any]] | None:
        """Return the uploads of these keys from one listing, or None if the server cannot list all of them with one request.

        MinIO lists uploads only for an exact key, not for a prefix. versitygw cannot continue a listing. A listing is therefore
        used only if it has a single page and contains a probe upload. Without a prefix, MinIO lists only the uploads since it was
        started, so each key of a whole bucket is listed separately.
        """
        if not self._prefix:
            return None
        named = {"Bucket": self._bucket, "Key": self._probe}
        with failures(f"s3://{self._bucket}/{self._prefix}"):
            probe = create_upload(self._client, named, "None")
            try:
                page = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._prefix)
            finally:
                self._abort({**named, "UploadId": probe})
            found = {stated(upload, "UploadId"): upload for upload in page.get("Uploads", ())}
            if page.get("IsTruncated") or found.pop(probe, None) is None:
                return None
            wanted = set(keys)
            return [upload for upload in found.values() if stated(upload, "Key") in wanted]

    def _abort_of_key(self, key: str, silent: float) -> None:
        """Abort the uploads of one key. List the first page again until it contains no more uploads to abort."""
        done: set[str] = set()
        with failures(f"s3://{self._bucket}/{key}"):
            while True:
                page = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key)
                of_key = (each for each in page.get("Uploads", ()) if stated(each, "Key") == key)
                new = [each for each in of_key if stated(each, "UploadId") not in done]
                stale = {upload["UploadId"] for upload in new if self._abort_if_stale(upload, silent)}
                if not (stale and page.get("IsTruncated")):
                    return
                done |= stale

    def _abort_if_stale(self, upload: dict[str, Any], silent: float) -> bool:
        named = {"Bucket": self._bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
        with failures(f"s3://{self._bucket}/{upload['Key']}"):
            try:
                if silent > 0 and self._silence(upload, named) <= silent:
                    return False
            except boto.ClientError as error:
                if code_of(error) not in _GONE:
                    raise
            self._abort(named)
        return True

    def _abort(self, named: dict[str, str]) -> None:
        try:
            self._client.abort_multipart_upload(**named)
        except boto.ClientError as error:
            if code_of(error) not in _GONE:
                raise

    def _silence(self, upload: dict[str, Any], named: dict[str, str]) -> float:
        """Return the seconds since data was last added to an upload."""
        marker, last = 0, stated(upload, "Initiated")
        while True:
            parts = self._client.list_parts(**named, PartNumberMarker=marker)
            last = max([last, *(stated(part, "LastModified") for part in parts.get("Parts", ()))])
            if not parts.get("IsTruncated"):
                return self._clock(date_of(parts)) - float(last.timestamp())
            marker = stated(parts, "NextPartNumberMarker")
