"""Convert paths and URLs of files to the form that stores accept."""

from __future__ import annotations

import re
from urllib.parse import unquote

from reshard.errors import RequestError, UsageError

S3 = "s3://"

# RFC 3986, but with at least two characters. `name:/` counts as well as `name://`, because pathlib turns the latter into the
# former.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?=(/*))")
_SPEAKS_S3 = {
    "cos": "its S3 endpoint",
    "gcs": "the endpoint https://storage.googleapis.com, with HMAC keys",
    "gs": "the endpoint https://storage.googleapis.com, with HMAC keys",
    "minio": "its endpoint",
    "obs": "the OBS endpoint of its region",
    "oss": "its S3 endpoint",
    "r2": "its endpoint",
    "s3a": "its endpoint",
    "s3n": "its endpoint",
    "tos": "its S3 endpoint",
}
_MOUNTED = {
    "abfs",
    "abfss",
    "adl",
    "az",
    "azure",
    "dbfs",
    "ftp",
    "hdfs",
    "http",
    "https",
    "sftp",
    "ssh",
    "swift",
    "wasb",
    "wasbs",
}
_KNOWN = {"file", "s3", *_SPEAKS_S3, *_MOUNTED}


def is_url(text: str) -> bool:
    """Return whether text is a URL, of any scheme, rather than a path relative to a volume or bucket.

    >>> is_url("obs://bucket/x"), is_url("s3:/bucket"), is_url("run:42/x")
    (True, True, False)
    """
    match = _SCHEME.match(text)
    return match is not None and (match[2].startswith("//") or match[1].lower() in _KNOWN)


def normalized(url: str) -> str:
    """Return a local path, or a URL that starts with "s3://".

    A folder whose name looks like a scheme must be written with "./" in front of it.

    Raises:
        RequestError: the scheme is not supported.
        UsageError: the URL cannot name a file.

    >>> normalized("file:///data/run%201"), normalized("S3://bucket/x"), normalized("data/x"), normalized("./gs:/x")
    ('/data/run 1', 's3://bucket/x', 'data/x', './gs:/x')
    """
    path = url
    if (match := _SCHEME.match(url)) is not None:
        scheme, rest = match[1].lower(), url[match.end() :]
        if scheme == "file":
            path = _file_path(url, rest)
        elif scheme == "s3" and rest.startswith("//"):
            path = S3 + rest[2:]
        elif rest.startswith("/") or scheme in _KNOWN:
            what = "the URL scheme is not supported"
            raise RequestError("UnsupportedScheme", what, where=url, fix=_fix(scheme, url))
    if "\0" in path:
        raise UsageError("InvalidAddress", "a path cannot contain a NUL character", where=url, fix="correct the path")
    return path


def local_path(url: str) -> str:
    """Return the local path that a path or a file:// URL names.

    Raises:
        RequestError: the URL is in an object store, or its scheme is not supported.
        UsageError: the URL cannot name a file.
    """
    path = normalized(url)
    if path.startswith(S3):
        what = "this option accepts only local files"
        raise RequestError("UnsupportedScheme", what, where=url, fix="mount or copy the file, and specify its path")
    return path


def _file_path(url: str, rest: str) -> str:
    """Return the absolute path that a file URL names: file:///path, file://localhost/path or file:/path."""
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host.lower() not in ("", "localhost") or not path.startswith("/"):
        what = "the URL is not an absolute path on this machine"
        raise UsageError("InvalidAddress", what, where=url, fix="specify a path, or a URL like file:///data/run-42")
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise UsageError(
            "InvalidAddress", "the decoded URL is not valid UTF-8", where=url, fix="specify the path without file://"
        ) from error


def _fix(scheme: str, url: str) -> str:
    rest = url.partition(":")[2].strip("/")
    if scheme == "s3":
        return f"pass s3://{rest or 'bucket/prefix'} as a str, because pathlib.Path removes a slash"
    if scheme in _SPEAKS_S3:
        where = "AWS_ENDPOINT_URL, or spec.*.storage.s3.endpoint"
        return f"use s3://{rest or 'bucket/prefix'} and set {_SPEAKS_S3[scheme]} ({where})"
    if scheme in _MOUNTED:
        return "mount or copy the data, and specify the folder's path"
    return f"use s3://bucket/prefix, or ./{url} for a folder with that name"
