"""The store as a hub of repositories: each model is one, and its versions are commits.

``main`` is the alias of that name, or without one the newest version. Aliases are branches, version
numbers are tags, and a commit's id is the first 40 digits of the version's digest. A variant is
reached as ``12+int8-row`` or ``prod+int8-row``.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from tierstore.errors import InvalidName, NotFound, UsageError
from tierstore.format.keys import ALIASES
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version, version_of
from tierstore.serving.hub.answers import HubError, repo_not_found, revision_not_found
from tierstore.serving.hub.rights import Caller

MAIN = "main"
OID_DIGITS = 40
_OID = re.compile(r"[0-9a-f]{40}\Z")
_MODELS = 16
_RESOLVED = 4096
_FRESH_S = 1.0
"""Seconds for which the version that a branch points to is not looked up again."""


def oid_of(version: Version) -> str:
    """Return the commit id of a version."""
    return version.digest.hex[:OID_DIGITS]


def _no_release(version: Version) -> Version:
    if version.is_release:  # it has no files: to clients there is no such repository
        raise NotFound(f"{version} is a release, not a model")
    return version


@dataclass(frozen=True, slots=True)
class Commit:
    """A version as a commit; ``oid`` is its id."""

    version: Version
    oid: str


class Repos:
    """Finds models and versions for callers, and keeps the last ones open; thread-safe.

    Args:
        store: Open store; whoever opened it closes it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._models: OrderedDict[tuple[str, str], Model] = OrderedDict()
        self._resolved: OrderedDict[tuple[str, str], tuple[Version, float]] = OrderedDict()

    def check_read(self, model: str, caller: Caller) -> None:
        """Raise ``HubError`` unless there is such a model and the caller may read it."""
        hidden = repo_not_found(model, anonymous=caller.name is None)
        if not caller.may_read(model):
            raise hidden
        try:
            last = self.store._parts.home.log(model).last()
        except InvalidName:
            raise hidden from None
        if last is None or version_of(model, last).is_release:
            raise repo_not_found(model, anonymous=False)

    def commit(self, model: str, revision: str, caller: Caller) -> Commit:
        """Return the version that a revision of a model names.

        Raises:
            HubError: There is no such model or revision, or the caller may not know of it.
        """
        if not caller.may_read(model):
            raise repo_not_found(model, anonymous=caller.name is None)
        fixed = _OID.match(revision) is not None
        with self._lock:
            found, seen = self._resolved.get((model, revision), (None, 0.0))
        if found is None or not (fixed or time.monotonic() - seen < _FRESH_S):
            found = self._resolve(model, revision, caller)
            with self._lock:
                self._resolved[model, revision] = found, time.monotonic()
                self._resolved.move_to_end((model, revision))
                while len(self._resolved) > _RESOLVED:
                    self._resolved.popitem(last=False)
        return Commit(found, oid_of(found))

    def _resolve(self, model: str, revision: str, caller: Caller) -> Version:
        try:
            if revision == MAIN:
                return self.main(model)
            which = f"b3:{revision}" if _OID.match(revision) else revision
            return _no_release(self.store.resolve(f"{model}@{which}"))
        except (NotFound, UsageError):
            self.check_read(model, caller)
            raise revision_not_found(revision) from None

    def main(self, model: str) -> Version:
        """Return the version that ``main`` names; ``NotFound`` if there is none, or a release."""
        pointed = self.store._parts.home.log(model, ALIASES + MAIN).last()
        named = pointed is not None and pointed.version is not None
        return _no_release(self.store.resolve(f"{model}@{MAIN}" if named else model))

    def forget(self, model: str) -> None:
        """Look up the branches of a model again: one was moved here."""
        with self._lock:
            for key in [key for key in self._resolved if key[0] == model]:
                del self._resolved[key]

    def open(self, commit: Commit) -> Model:
        """Open a version; the last few stay open."""
        key = (str(commit.version), commit.version.digest.hex)
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
                return self._models[key]
        try:
            model = self.store.load(commit.version)
            model.fold()  # what this gateway says of a file begins with its SHA-256
        except NotFound:
            raise HubError(410, f"{commit.version} is gone") from None
        with self._lock:
            self._models[key] = model
            while len(self._models) > _MODELS:
                self._models.popitem(last=False)
        return model
