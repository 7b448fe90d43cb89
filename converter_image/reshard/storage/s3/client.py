"""The S3 client. A session of botocore provides credentials, region and configuration, resolved like those of the AWS CLI."""

from __future__ import annotations

import gzip
import ssl
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session
import msgspec
from botocore.config import Config
from botocore.credentials import CredentialProvider, Credentials, ReadOnlyCredentials
from botocore.handlers import add_expect_header
from botocore.loaders import JSONFileLoader, Loader

from reshard.errors import AccessError, RequestError, UsageError
from reshard.storage.s3.failures import failures, without_credentials
from reshard.storage.s3.prepared import allow_preparing
from reshard.storage.s3.retries import add_retries

if TYPE_CHECKING:
    from botocore.client import BaseClient

    from reshard.spec.storage_options import StorageOptions

# For all workers together; idle connections cost nothing.
_MOST_CONNECTIONS = 128
_CONNECT_SECONDS = 10
_READ_SECONDS = 30
_DEFAULT_REGION = "us-east-1"


@lru_cache(maxsize=16)
def client_of(storage_options: StorageOptions) -> BaseClient:
    """Return the client for these options. Equal options share one client. Threads may share it.

    Raises:
        AccessError: the profile does not exist, or the credentials cannot be read.
        RequestError: the configuration contradicts itself.
        UsageError: the endpoint URL contains credentials.
    """
    _check_endpoint(storage_options.endpoint)
    with failures(storage_options.endpoint or "s3"):
        session = botocore.session.Session(profile=storage_options.profile)
        session.register_component("data_loader", _Loader(session.get_component("data_loader").search_paths))
        # Waiting for `100 Continue` takes a round trip per object, and most objects are smaller than what is sent meanwhile.
        session.unregister("before-call.s3", add_expect_header)
        if storage_options.credentials is not None:
            session.get_component("credential_provider").insert_before("env", _FolderProvider(Path(storage_options.credentials)))
        authorities = storage_options.ca_bundle or session.get_config_variable("ca_bundle") or None
        if authorities is not None:
            _check_authorities(authorities)
        s3: dict[str, Any] = {}
        if storage_options.addressing != "Auto":
            s3["addressing_style"] = storage_options.addressing.lower()
        if (
            storage_options.checksums != "None"
        ):  # the server verifies content by its checksum: a signature of all bytes adds nothing
            s3["payload_signing_enabled"] = False
        config = Config(
            s3=s3 or None,
            retries={"mode": "standard", "total_max_attempts": 1},  # see `add_retries`
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=_MOST_CONNECTIONS,
            tcp_keepalive=True,
            # Choose checksums here: some servers do not understand those that newer clients add by themselves.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        client = session.create_client(
            "s3",
            endpoint_url=storage_options.endpoint,
            region_name=storage_options.region or session.get_config_variable("region") or _DEFAULT_REGION,
            verify=authorities,
            config=config,
        )
    allow_preparing(client)
    add_retries(client)
    _check_endpoint(client.meta.endpoint_url)  # which the environment or a profile may set
    return client


def _check_endpoint(endpoint: str | None) -> None:
    """Refuse an endpoint URL that contains credentials, because messages and process lists show the URL."""
    if endpoint is not None and ("@" in endpoint or "?" in endpoint):
        raise UsageError(
            "InvalidAddress",
            "the endpoint URL must not contain credentials",
            where=without_credentials(endpoint),
            fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile",
        )


def _check_authorities(path: str) -> None:
    """Check that a file contains certificates. The client would only report a failed connection to the server."""
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # also for a file that is not a certificate
        what = f"cannot load the CA bundle: {error.strerror or error}"
        raise RequestError("CaBundleInvalid", what, where=path, fix="use a PEM file of certificates") from error


class _Files(JSONFileLoader):  # type: ignore[misc]  # botocore comes without types
    """Reads the descriptions of services, in less time than the decoder of Python: a fifth of the start."""

    def load_file(self, file_path: str) -> Any:
        """Return the content of a file, given its path without the extension, or None if it does not exist."""
        for extension, opened in ((".json", open), (".json.gz", gzip.open)):
            with suppress(FileNotFoundError), opened(file_path + extension, "rb") as file:
                return msgspec.json.decode(file.read())
        return None


class _Loader(Loader):  # type: ignore[misc]  # botocore comes without types
    """Loads the descriptions of services. Botocore would search each of some hundred folders first, for a third of the start."""

    def __init__(self, folders: list[str]) -> None:
        super().__init__(folders, file_loader=_Files(), include_default_search_paths=False)

    def list_available_services(self, type_name: str) -> list[str]:
        """Return the names of all services, and possibly other names."""
        del type_name
        return sorted({entry.name for folder in map(Path, self.search_paths) if folder.is_dir() for entry in folder.iterdir()})


class _FolderProvider(CredentialProvider):  # type: ignore[misc]  # botocore comes without types
    """Finds credentials in a folder."""

    METHOD = "reshard-folder"
    CANONICAL_NAME = "reshard-folder"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def load(self) -> Credentials:
        return _FolderCredentials(self._folder)


class _FolderCredentials(Credentials):  # type: ignore[misc]  # botocore comes without types
    """Credentials in a mounted Secret. They are read for every request, so that a rotation takes effect immediately."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        frozen = self.get_frozen_credentials()
        super().__init__(frozen.access_key, frozen.secret_key, frozen.token, method="reshard-folder")

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return the current credentials in the files."""
        return ReadOnlyCredentials(
            self._part("accessKeyId"), self._part("secretAccessKey"), self._part("sessionToken", need=False)
        )

    def _part(self, name: str, *, need: bool = True) -> str | None:
        path = self._folder / name
        try:
            return path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            if not need:
                return None
            what = "no such file"
        except OSError as error:
            what = error.strerror or "the file cannot be read"
        except UnicodeDecodeError:
            what = "the file is not ASCII text"
        raise AccessError(
            "CredentialsMissing",
            what,
            where=str(path),
            fix="add the keys accessKeyId and secretAccessKey (and sessionToken, if needed) to the Secret",
        )
