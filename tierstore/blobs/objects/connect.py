"""Connections to object stores: address, credentials, trust and time limits.

Credentials are never part of a URL, an option or a message. They come from the node's own file, for
one tier alone; or else from the environment or the machine itself (instance, container or pod
identity), which obstore asks; or from a profile of AWS's own files, which boto3 reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tierstore.blobs.objects.library import library
from tierstore.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Credential

S3_SCHEMES = frozenset({"s3", "s3a"})
_ONLY_S3 = ("endpoint", "region", "path_style", "profile")
_CONNECT_S = 5.0
_ANY_LENGTH = timedelta(hours=1)  # reads are bounded by what they bring, not by how long they take


@dataclass(frozen=True, slots=True)
class BucketAccess:
    """Settings for reaching a bucket, in addition to what the environment gives.

    Attributes:
        endpoint: The address of a server with the S3 protocol: ``https://host:port``.
        region: The region of the bucket.
        path_style: Whether the bucket is part of the path instead of the host's name.
        profile: The name of a profile in AWS's own configuration files.
        ca: The path of a PEM file with authorities to trust besides the system's own.
        allow_http: Whether an endpoint of the environment may be plain ``http``; one that is given
            here may.
        login: The id of an access key and its secret; they take precedence over all others.
        variables: The variables that the client takes texts from by itself.
        proxy: What names the proxy that requests go through, for messages.
    """

    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None
    profile: str | None = None
    ca: str | None = None
    allow_http: bool = False
    login: tuple[str, str] | None = field(default=None, repr=False)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = None

    def check(self) -> None:
        """Raise ``ConfigError`` for what cannot be part of a request; the client would panic."""
        texts = {
            f"the variable {name}": value
            for name, value in self.variables.items()
            if self.endpoint is None or "ENDPOINT" not in name  # one that is given wins
        }
        texts |= {f"the option {name}": getattr(self, name) for name in ("endpoint", "region")}
        if self.login is not None:
            texts |= dict(zip(("the username", "the password"), self.login, strict=True))
        for what, value in texts.items():
            if value is None:
                continue
            if not (value.isascii() and value.isprintable() and value == value.strip()):
                raise ConfigError(
                    f"{what} holds white space at an end, a line end or a letter that is not "
                    "ASCII: remove it"
                )
            if what.removesuffix("_S3").endswith(("_ENDPOINT", "_ENDPOINT_URL", " endpoint")):
                _check_endpoint(what, value)


def _check_endpoint(what: str, value: str) -> None:
    try:
        parts = urlsplit(value)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname)
        good = good and "@" not in parts.netloc and not (parts.query or parts.fragment)
        parts.port  # noqa: B018 - a ValueError for what is none
    except ValueError:
        good = False
    if not good:
        shown = "" if "@" in value else f" {value!r}"
        raise ConfigError(
            f"{what}{shown} is no address: give it as https://HOST or http://HOST:PORT"
        )
    if parts.path.strip("/"):
        raise ConfigError(
            f"{what} {value!r} has a path: give {parts.scheme}://{parts.netloc} alone; the bucket "
            "and what follows it belong into the store's URL"
        )


def check_url(url: str) -> str:
    """Return a store's URL without its last slash; ``ConfigError`` when it is not valid."""
    parts = urlsplit(url)
    # The URL is not repeated: what is wrong with it may be that it holds a secret.
    if "@" in parts.netloc and parts.scheme not in {"abfs", "abfss"}:
        raise ConfigError("a store's URL must not hold credentials: use the environment")
    if parts.query or parts.fragment:
        raise ConfigError("a store's URL must not hold '?' or '#': use the environment")
    if not parts.netloc:
        raise ConfigError(f"{url!r} names no bucket: use {parts.scheme}://bucket/prefix")
    return url.rstrip("/")


def connect(url: str, access: BucketAccess, timeout_s: float, retry_s: float) -> Clients:
    """Return clients of the bucket for this process.

    No request is sent yet. A request that reads ends when nothing came for ``timeout_s``, any other
    when it took that long.

    Raises:
        BackendError: This process was forked, and obstore cannot be used here.
        ConfigError: The store cannot be opened, or a setting is not for this kind of store.
    """
    scheme = urlsplit(url).scheme
    access.check()
    if scheme not in S3_SCHEMES:
        for name in _ONLY_S3:
            if getattr(access, name) is not None:
                raise ConfigError(f"{url}: the setting {name} is for s3:// alone")
    obstore = library(url)
    config, provider = _config_of(access)
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=min(_CONNECT_S, timeout_s)),
        "allow_http": access.allow_http or (access.endpoint or "").startswith("http://"),
    }
    if access.ca is not None:
        client["root_certificate"] = _certificates(access.ca)
    retry: RetryConfig = {
        "max_retries": 20,
        "retry_timeout": timedelta(seconds=retry_s),
        "backoff": {"max_backoff": timedelta(seconds=min(5.0, timeout_s))},
    }
    limit = timedelta(seconds=timeout_s)

    settings: dict[str, Any] = {
        "config": config or None,
        "retry_config": retry,
        "credential_provider": provider,
    }
    reads: ClientConfig = {**client, "timeout": _ANY_LENGTH, "read_timeout": limit}
    others: ClientConfig = {**client, "timeout": limit}
    try:
        from_url = obstore.store.from_url
        return Clients(
            obstore,
            from_url(url, client_options=reads, **settings),
            lambda: from_url(url, client_options=others, **settings),
        )
    except errors_of(obstore):
        raise ConfigError(
            f"{url} cannot be opened: check the URL and the region, endpoint and credentials in "
            "the environment"
        ) from None


def _config_of(access: BucketAccess) -> tuple[dict[str, Any], Any]:
    """Return settings as obstore names them, and the provider of credentials, if there is one."""
    config: dict[str, Any] = {}
    if access.endpoint is not None:
        config["endpoint"] = access.endpoint
    if access.region is not None:
        config["region"] = access.region
    if access.path_style is not None:
        config["virtual_hosted_style_request"] = not access.path_style
    provider: Any = None
    if access.login is not None:
        provider = _Login(*access.login)
    elif access.profile:
        provider = _profile(access.profile)
        if provider is not None and "region" not in config and provider.config.get("region"):
            config["region"] = provider.config["region"]
    return config, provider


class Clients:
    """A process's clients of one bucket: one for reading, and one for all else.

    A client takes some 10 ms to make, and a process that only reads needs one.

    Args:
        obstore: The module, as this process may use it.
        reads: The client for reading.
        connect_others: Makes the other one.
    """

    def __init__(
        self, obstore: Any, reads: ObjectStore, connect_others: Callable[[], ObjectStore]
    ) -> None:
        self.obstore, self.reads, self._connect_others = obstore, reads, connect_others
        self.errors = errors_of(obstore)
        self._lock = threading.Lock()
        self._others: ObjectStore | None = None

    @property
    def others(self) -> ObjectStore:
        """The client for requests that do not read."""
        with self._lock:
            if self._others is None:
                self._others = self._connect_others()
            return self._others


def errors_of(obstore: Any) -> tuple[type[Exception], ...]:
    """Return what the functions of obstore raise."""
    return (obstore.exceptions.BaseError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class _Login:
    """A provider of one access key.

    As a setting of obstore, the key would be joined by a session token from the environment, which
    belongs to another key.
    """

    key_id: str
    secret: str = field(repr=False)

    def __call__(self) -> S3Credential:
        return {
            "access_key_id": self.key_id,
            "secret_access_key": self.secret,
            "token": None,
            "expires_at": None,
        }


def _profile(name: str) -> Any:
    """Return a provider of a profile's credentials; ``None`` for the default without boto3."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        if name == "default":
            return None
        raise ConfigError(
            f"the AWS profile {name!r} needs boto3: pip install 'tierstore[s3]', or put the "
            "credentials into the environment"
        ) from None
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=name))
    except (BotoCoreError, ValueError):
        raise ConfigError(
            f"the AWS profile {name!r} gives no credentials: check ~/.aws/config and "
            "~/.aws/credentials, or AWS_PROFILE"
        ) from None


def _certificates(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"the file of authorities {path} cannot be read: {error}") from None
