"""Objects in S3, or in what speaks its protocol, as a storage."""

from reshard.storage.s3.store import S3Store

__all__ = ["S3Store"]
