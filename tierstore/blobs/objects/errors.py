"""Errors of object stores as ours, without the text of the answer.

obstore's messages carry the server's whole answer and the request's address, which can hold an
access key's id, a signature or a token: only the status and the S3 error code are kept.
"""

from __future__ import annotations

import re

from tierstore.errors import (
    Archived,
    BackendError,
    Damaged,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    TierstoreError,
    Unreachable,
)

_STATUS = re.compile(r"status code: (\d{3})")
# An answer to a deletion of many has a code for each of them, which obstore puts in its own words.
_CODE = re.compile(r"(?:<Code>|\(code: )([A-Za-z0-9]{1,60})(?:</Code>|\))")
# Where the AWS, GCS and Azure clients look for credentials when the environment has none.
_NO_CREDENTIALS = re.compile(r"169\.254\.\d+\.\d+|metadata\.google|/latest/api/token")
_FULL_CODES = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})
_BUSY_CODES = frozenset({"SlowDown", "InternalError", "ServiceUnavailable"})
# A key with an empty part, "." or "..", or a control character, which another program wrote.
_NO_KEY = re.compile(r'object with invalid path: [^"]*"([^"\n]*)"')
_NO_CONTAINER = frozenset({"NoSuchBucket", "ContainerNotFound"})


def translated(error: Exception, doing: str, url: str, proxy: str | None = None) -> TierstoreError:
    """Return our exception for one of obstore's.

    Args:
        error: The exception of obstore.
        doing: The operation and its key, as in ``writing 'a/b' in``.
        url: The store's own address.
        proxy: What names the proxy that requests go through.
    """
    text = str(error)
    found = _STATUS.search(text)
    status = int(found[1]) if found else None
    found = _CODE.search(text)
    code = found[1] if found else ""
    said = " ".join(filter(None, [f"HTTP {status}" if status else "", code]))
    message = f"{doing} {url} failed" + (f": {said}" if said else "")
    if code in _NO_CONTAINER:
        return NotFound(f"{message}; create the bucket first, or check the URL")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{message}; there is no such blob, or no such bucket")
    if code == "InvalidObjectState":
        return Archived(f"{message}; it is archived: 'tierstore restore' makes it readable")
    if code in _FULL_CODES or status == 507:
        return OutOfSpace(f"{message}; free some space or raise the quota, then try again")
    if _NO_CREDENTIALS.search(text):
        return PermissionDenied(f"{message}; no credentials were found in the environment")
    if status in {401, 403} or code == "AccessDenied":
        return PermissionDenied(f"{message}; check the credentials and what they may do")
    if status == 416:
        return Damaged(f"{message}; the blob is shorter than it should be")
    if "BadScheme" in text:
        return BackendError(
            f"{message}: its endpoint is plain http; set AWS_ALLOW_HTTP=true to allow that"
        )
    if status in {408, 429} or (status or 0) >= 500 or code in _BUSY_CODES:
        return Unreachable(f"{message} after the retries; try again later")
    if status is None and "InvalidCertificate" in text:
        return Unreachable(
            f"{message}: its TLS certificate is not trusted; give the authority that signed it "
            "(the tier's ca, or AWS_CA_BUNDLE)"
        )
    if status is None and "HTTP error" in text:
        why = "it did not answer in time" if "kind: Timeout" in text else "no connection"
        if proxy:
            return Unreachable(
                f"{message} ({why}) after the retries, through the proxy {proxy}; check that "
                "proxy, or name the endpoint in NO_PROXY"
            )
        return Unreachable(f"{message} ({why}) after the retries; check the endpoint and network")
    if found := _NO_KEY.search(text):
        return BackendError(
            f"{message}: something else has put {found[1]!r} into the bucket, and a folder with "
            "such a key cannot be listed; delete that object, or move it away"
        )
    return BackendError(f"{message}; check the store's own log")
