"""Delete many objects, with up to 1,000 objects per request, or one by one if the server does not support that."""

from __future__ import annotations

from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING

from botocore import exceptions as boto

from reshard.parallel import parallel
from reshard.storage.s3.failures import BUSY, MISSING, PRECONDITION_FAILED, code_of, failures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from botocore.client import BaseClient

_MOST_KEYS = 1000
_BATCHES_AT_ONCE = 4
_NO_CONDITIONS = {"NotImplemented", "501", "InvalidArgument", "InvalidRequest", "400"}


class Deleter:
    """Deletes objects of one bucket. Threads may share it."""

    def __init__(self, client: BaseClient, bucket: str) -> None:
        self._client, self._bucket = client, bucket
        self._one_by_one = False  # set once the server has refused DeleteObjects
        self._conditions = True  # until the server has refused one

    def delete(self, keys: Sequence[str], versions: Mapping[str, str] = MappingProxyType({})) -> None:
        """Delete the objects with these keys. A key without an object is not an error.

        A key that the response to DeleteObjects does not list as deleted is deleted by a separate request, which is retried and
        whose error is reported. An object with a version is deleted by a separate request, too: versitygw 1.8 compares the
        version in DeleteObject, but not in DeleteObjects.

        Args:
            keys: keys of the objects.
            versions: entity tags by key. An object with another one remains, if the server can delete on a condition.

        Raises:
            LockedError: an object has another version.
            AccessError, StorageError: an object cannot be deleted.
        """
        if len(keys) > 1 and not versions:
            batches = [keys[at : at + _MOST_KEYS] for at in range(0, len(keys), _MOST_KEYS)]
            keys = list(chain.from_iterable(parallel(self._delete_batch, batches, at_once=_BATCHES_AT_ONCE)))
        for _ in parallel(lambda key: self._delete_one(key, versions.get(key)), keys):
            pass

    def _delete_batch(self, keys: Sequence[str]) -> Sequence[str]:
        """Delete objects with one request. Return the keys of the objects that may still exist."""
        if self._one_by_one:
            return keys
        wanted = [{"Key": key} for key in keys]
        with failures(f"s3://{self._bucket}/{keys[0]}"):
            try:
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": wanted})
            except boto.ClientError as error:
                if code_of(error) in BUSY:
                    raise
                self._one_by_one = True
                return keys
        deleted = {each.get("Key") for each in answer.get("Deleted", ())}
        return [key for key in keys if key not in deleted]

    def _delete_one(self, key: str, version: str | None) -> None:
        named = {"Bucket": self._bucket, "Key": key}
        with failures(f"s3://{self._bucket}/{key}"):
            if version is not None and self._conditions and self._delete_unchanged(named, version):
                return
            self._client.delete_object(**named)

    def _delete_unchanged(self, named: Mapping[str, str], version: str) -> bool:
        """Delete an object that has this version, or does not exist. Return False if the server cannot compare versions."""
        try:
            self._client.delete_object(**named, IfMatch=version)
        except boto.ClientError as error:
            code = code_of(error)
            if code in _NO_CONDITIONS:
                self._conditions = False
                return False
            # A request whose answer was lost is repeated. Some servers then answer that the condition does not hold.
            if code not in MISSING and not (code in PRECONDITION_FAILED and self._is_missing(named)):
                raise
        return True

    def _is_missing(self, named: Mapping[str, str]) -> bool:
        try:
            self._client.head_object(**named)
        except boto.ClientError as error:
            if code_of(error) not in MISSING:
                raise
            return True
        return False
