"""Objects in S3 and compatible servers as a storage."""

from reshard.storage.s3.store import S3Store

__all__ = ["S3Store"]
