"""Archive storage classes of S3, whose objects must be restored before they are read.

This needs boto3: obstore, which carries all data, cannot restore an object or change its class.
Here are only calls without data: copying an object onto itself in another class, asking for a
restore, and looking at both.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from tierstore.blobs.base import check_key
from tierstore.blobs.objects.connect import BucketAccess, check_url
from tierstore.errors import (
    BackendError,
    ConfigError,
    NotFound,
    PermissionDenied,
    TierstoreError,
    Unreachable,
)

ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""The classes that need a restore; ``GLACIER_IR`` is not one, since it answers at once."""

_EXPIRY = re.compile(r'expiry-date="([^"]*)"')


class S3Archive:
    """Freezes and restores objects of an S3 store, as ``tiers.durable.archive.Archive`` defines it.

    The client is made at its first use. Thread-safe from then on.

    Args:
        url: ``s3://bucket/prefix``, where the objects are.
        storage_class: One of ``ARCHIVE_CLASSES``.
        timeout_s: Seconds for one attempt of a request.
        access: The same as for ``ObjectStore``.
    """

    def __init__(
        self, url: str, storage_class: str, *, timeout_s: float = 15.0, **access: Any
    ) -> None:
        parts = urlsplit(check_url(url))
        self._bucket, self._prefix = parts.netloc, _prefix_of(parts.path)
        self._url, self._class = url, storage_class
        self._access, self._timeout_s = BucketAccess(**access), timeout_s
        self._made: Any = None

    def freeze(self, key: str) -> None:
        """Change the class of an object; the storage copies it and verifies its own copy.

        Raises:
            NotFound: There is no such object.
            BackendError: The storage did not do it, or does not confirm that it did.
        """
        place = {"Bucket": self._bucket, "Key": self._key(key)}
        with self._errors("freezing", key):
            before = self._client.head_object(**place)
            self._client.copy_object(
                **place, CopySource=place, StorageClass=self._class, MetadataDirective="COPY"
            )
            after = self._client.head_object(**place)
        same = before["ContentLength"] == after["ContentLength"]
        if not same or after.get("StorageClass") != self._class:
            raise BackendError(
                f"{key!r} in {self._url} was to become {self._class}, but the storage says "
                f"{after.get('StorageClass', 'STANDARD')} and {after['ContentLength']} bytes"
            )

    def state(self, key: str) -> tuple[str, str]:
        """Return the state of an object: ``readable``, ``archived``, ``restoring`` or ``restored``.

        The second value is the time until which a restored copy is kept, as text.
        """
        with self._errors("reading", key):
            head = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        if head.get("StorageClass") not in ARCHIVE_CLASSES:
            return "readable", ""
        said = head.get("Restore", "")
        if 'ongoing-request="true"' in said:
            return "restoring", ""
        expiry = _EXPIRY.search(said)
        return ("restored", expiry[1]) if expiry else ("archived", "")

    def restore(self, key: str, days: int, speed: str) -> None:
        """Ask for a copy that can be read for some days; asking again is fine.

        Args:
            key: The key of the object.
            days: How many days the copy is kept, from 1.
            speed: ``Expedited``, ``Standard`` or ``Bulk``.
        """
        request = {"Days": days, "GlacierJobParameters": {"Tier": speed}}
        with self._errors("restoring", key):
            self._client.restore_object(
                Bucket=self._bucket, Key=self._key(key), RestoreRequest=request
            )

    def _key(self, key: str) -> str:
        check_key(key)
        return f"{self._prefix}/{key}" if self._prefix else key

    @property
    def _client(self) -> Any:
        if self._made is None:
            self._made = _connected(self._access, self._timeout_s)
        return self._made

    @contextmanager
    def _errors(self, doing: str, key: str) -> Iterator[None]:
        try:
            yield
        except TierstoreError:
            raise
        except Exception as error:
            translated = _translated(error, f"{doing} {key!r} in {self._url}")
            if translated is not None:
                raise translated from None


def _prefix_of(path: str) -> str:
    """Return the prefix of keys that obstore makes of a URL's path, for boto3, which gets keys."""
    return unquote(posixpath.normpath(path or "/")).strip("/")


def _translated(error: Exception, what: str) -> TierstoreError | None:
    """Return our exception for one of boto3's; ``None`` for a restore that is under way."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        if type(error).__module__.partition(".")[0] != "botocore":
            raise error
        return Unreachable(f"{what} failed: no answer; check the endpoint and network")
    # the message may repeat the request, which holds the id of a key
    code = str(answer.get("Error", {}).get("Code", ""))[:60]
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code == "RestoreAlreadyInProgress":
        return None
    message = f"{what} failed: HTTP {status} {code}"
    if status == 404 or code in {"NoSuchKey", "NoSuchBucket"}:
        return NotFound(f"{message}; there is no such object")
    if status in {401, 403} and code != "InvalidObjectState":
        return PermissionDenied(f"{message}; check the credentials and what they may do")
    if status in {408, 429} or (status or 0) >= 500:
        return Unreachable(f"{message} after the retries; try again later")
    return BackendError(message)


def _connected(access: BucketAccess, timeout_s: float) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise ConfigError(
            "archive storage classes need boto3: pip install 'tierstore[s3]'"
        ) from None
    access.check()
    style = {None: "auto", True: "path", False: "virtual"}[access.path_style]
    settings = Config(
        connect_timeout=min(5.0, timeout_s),
        read_timeout=timeout_s,
        retries={"mode": "standard", "max_attempts": 5},
        s3={"addressing_style": style},
    )
    key_id, secret = access.login or (None, None)
    profile = None if access.login else access.profile
    session = boto3.Session(key_id, secret, profile_name=profile)
    return session.client(
        "s3",
        endpoint_url=access.endpoint,
        region_name=access.region,
        verify=access.ca,
        config=settings,
    )
