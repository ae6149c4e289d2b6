"""What the environment and the machine say: the only reader of ``TIERSTORE_*`` variables."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tierstore.errors import ConfigError, UsageError
from tierstore.modelstore.settings import Settings

PREFIX = "TIERSTORE_"
STORE = "TIERSTORE_STORE"
CACHE_DIR = "TIERSTORE_CACHE_DIR"
THREADS = "TIERSTORE_THREADS"
MEMORY_LIMIT = "TIERSTORE_MEMORY_LIMIT"
NATIVE = "TIERSTORE_NATIVE"
DEBUG = "TIERSTORE_DEBUG"
NODE = "TIERSTORE_NODE"
LABELS = "TIERSTORE_LABELS"
KNOWN = (STORE, CACHE_DIR, THREADS, MEMORY_LIMIT, NATIVE, DEBUG, NODE, LABELS)
"""What this module and the program read; each option of a command has a variable of its own."""

_OFF = {"", "0", "false", "no", "off"}
_TIME = re.compile(r"(\d{1,9})([smhd]?)\Z")
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\Z", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from ``512MiB``, ``2G`` (binary) or ``50GB`` (decimal); ``ConfigError`` otherwise."""
    match = _SIZE.match(text.strip())
    if not match:
        raise ConfigError(f"{text!r} is not a size; write 512MiB, 2GiB or 50GB")
    number, unit, binary = match.groups()
    decimal = text.strip().upper().endswith("B") and not binary
    return int(float(number) * (1000 if decimal else 1024) ** " KMGT".index(unit.upper() or " "))


def parse_seconds(text: str) -> int:
    """Seconds from ``90s``, ``30m``, ``2h``, ``7d`` or a plain count; ``ConfigError`` otherwise."""
    match = _TIME.match(text.strip())
    if not match or not (seconds := int(match[1]) * _UNIT_S[match[2]]):
        raise ConfigError(f"{text!r} is not a time; write 90s, 30m, 2h or 7d")
    return seconds


def parse_labels(text: str) -> dict[str, str]:
    """Labels from ``region=eu,gpu=h100``; ``ConfigError`` otherwise."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not name.strip() or not equals for name, equals, _ in pairs):
        raise ConfigError(f"{text!r} are no labels; write NAME=VALUE,NAME=VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}


def settings_from(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that the environment gives; ``ConfigError`` names a bad variable."""
    chosen: dict[str, Any] = {}
    if text := environ.get(THREADS):
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
            raise ConfigError(f"{THREADS}={text!r} is not a number of threads from 1 to 1024")
        chosen["threads"] = int(text)
    if text := environ.get(MEMORY_LIMIT):
        chosen["memory_limit"] = parse_size(text)
        if chosen["memory_limit"] < 32 << 20:
            raise ConfigError(f"{MEMORY_LIMIT}={text!r} is too little; give 32MiB or more")
    if node := environ.get(NODE):
        chosen["node"] = node
    if labels := environ.get(LABELS):
        chosen["labels"] = parse_labels(labels)
    return Settings(cache_dir=_cache_dir(environ), **chosen)


def _cache_dir(environ: Mapping[str, str]) -> Path:
    if own := environ.get(CACHE_DIR):
        return Path(own)
    if base := environ.get("XDG_CACHE_HOME"):
        return Path(base) / "tierstore"
    try:
        return Path.home() / ".cache" / "tierstore"
    except RuntimeError:  # no home directory in this container
        return Path("/tmp/tierstore-cache")


def store_url(given: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The store that the caller named, or else ``TIERSTORE_STORE``."""
    url = given if given is not None else environ.get(STORE)
    if not url:
        raise UsageError(f"no store is named: give its URL (--store), or set {STORE}")
    return url


def http_allowed(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether an object store's endpoint may be plain http: ``AWS_ALLOW_HTTP=true``.

    obstore reads this variable itself, but not once it is given any client options.
    """
    return environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes", "on", "y"}


def native_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the native kernels may be used: ``TIERSTORE_NATIVE=0`` switches them off."""
    return environ.get(NATIVE, "1") not in _OFF


def is_on(name: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable such as ``TIERSTORE_DEBUG`` is set to anything but 0, no, off, false."""
    return environ.get(name, "").lower() not in _OFF


def check_known(more: Iterable[str] = (), environ: Mapping[str, str] = os.environ) -> None:
    """Refuse ``TIERSTORE_*`` variables that nothing reads; ``ConfigError`` names the nearest one.

    Args:
        more: known variables beside those of this module.
        environ: what to look through.
    """
    known = {*KNOWN, *more}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"did you mean {near[0]}?" if near else "'tierstore --help' names those that are"
            raise ConfigError(f"the environment variable {name} is not known: {hint}")
