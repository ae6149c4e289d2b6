"""The store as a hub of repositories: each model is one, and its versions are commits.

``main`` is the alias of that name, or without one the newest version. Aliases are branches, version
numbers are tags, and a commit's id is the first 40 digits of the version's digest. A variant is
reached as ``12+int8-row`` or ``prod+int8-row``.

The text of a request becomes a model here and nowhere else, and the caller's right is asked in the
same step: handlers hold no store, only the ``Repo`` or ``WritableRepo`` that they are given.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tierstore.errors import InvalidName, NotFound, UsageError
from tierstore.format.keys import ALIASES
from tierstore.ids import ModelRef, check_alias, check_name
from tierstore.modelstore.home.ahead import ahead
from tierstore.modelstore.home.heads import End, Heads
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
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
    """Gives callers the models that they have a right to, and keeps versions open; thread-safe.

    Args:
        store: Open store; whoever opened it closes it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._models: OrderedDict[tuple[str, str], Model] = OrderedDict()
        self._resolved: OrderedDict[tuple[str, str], tuple[Version, float]] = OrderedDict()
        self._mains: dict[str, tuple[tuple[End, End, End], Version]] = {}
        """What ``main`` of models that were listed names, and where their logs ended before."""

    def readable(self, text: str, caller: Caller) -> Repo:
        """Return the model of this name, which need not exist, for a caller that may read it.

        Raises:
            HubError: The text is no model's name, or the caller has no right to read it; as on the
                Hub, both look like a model that does not exist.
        """
        hidden = repo_not_found(text, anonymous=caller.name is None)
        try:
            name = check_name("model", text)
        except InvalidName:
            raise hidden from None
        if not caller.may_read(name):
            raise hidden
        return Repo(self, name, caller)

    def writable(self, text: str, caller: Caller) -> WritableRepo:
        """Return the model of this name, which need not exist, for a caller that may write to it.

        Raises:
            InvalidName: The text is no model's name.
            HubError: The caller may not know of the model; 403, it may only read it.
        """
        name = check_name("model", text)
        if not caller.may_write(name):
            if not caller.may_read(name):
                raise repo_not_found(name, anonymous=caller.name is None)
            raise HubError(403, f"this token may not write to {name}")
        return WritableRepo(self, name, caller)

    def mains(self, caller: Caller, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Version]]:
        """Yield the models that a caller may read, by name, with the versions that ``main`` names.

        One listing says which logs have grown: only those of models that have are read again.

        Args:
            caller: The caller.
            wanted: Whether a model of this name is looked up at all.
        """
        heads = Heads(self._store._parts.home.blobs)
        asked = (
            (name, (*ends, heads.of(name, ALIASES + MAIN)))
            for name, ends in heads.versions()
            if caller.may_read(name) and wanted(name)
        )
        for (name, _), version in ahead(self._main_as_of, asked):
            if version is not None and not version.is_release:
                yield name, version

    def _main_as_of(self, asked: tuple[str, tuple[End, End, End]]) -> Version | None:
        """Return what ``main`` of a model names whose logs end there; ``None`` for nothing."""
        name, ends = asked
        with self._lock:
            known = self._mains.get(name)
        if known is None or known[0] != ends:
            try:
                has_main = ends[2].seq > 0
                known = ends, self._named_main(name) if has_main else self._store.resolve(name)
            except NotFound:  # all of it is removed
                return None
            with self._lock:
                self._mains[name] = known
        return known[1]

    def _commit(self, ref: ModelRef) -> Version:
        """Return the version that a reference means; those seen last are remembered."""
        key = (ref.model, str(ref))
        fixed = ref.prefix is not None and len(ref.prefix) == OID_DIGITS
        with self._lock:
            found, seen = self._resolved.get(key, (None, 0.0))
        if found is None or not (fixed or time.monotonic() - seen < _FRESH_S):
            if ref.alias == MAIN and ref.variant is None:
                found = self._main(ref.model)
            else:
                found = _no_release(self._store.resolve(str(ref)))
            with self._lock:
                self._resolved[key] = found, time.monotonic()
                self._resolved.move_to_end(key)
                while len(self._resolved) > _RESOLVED:
                    self._resolved.popitem(last=False)
        return found

    def _main(self, model: str) -> Version:
        return _no_release(self._named_main(model))

    def _named_main(self, model: str) -> Version:
        pointed = self._store._parts.home.log(model, ALIASES + MAIN).last()
        named = pointed is not None and pointed.version is not None
        return self._store.resolve(f"{model}@{MAIN}" if named else model)

    def _forget(self, model: str) -> None:
        """Look up the branches of a model again: one was moved here."""
        with self._lock:
            for key in [key for key in self._resolved if key[0] == model]:
                del self._resolved[key]

    def _open(self, version: Version) -> Model:
        """Open a version; the last few stay open."""
        key = (str(version), version.digest.hex)
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
                return self._models[key]
        try:
            model = self._store.load(version)
        except NotFound:
            raise HubError(410, f"{version} is gone") from None
        with self._lock:
            model = self._models.setdefault(key, model)
            while len(self._models) > _MODELS:
                self._models.popitem(last=False)
        return model


class Repo:
    """One model, for a caller that may read it; ``Repos.readable`` gives it out.

    Attributes:
        name: Name of the model, by which the right was asked.
        caller: The caller.
    """

    def __init__(self, repos: Repos, name: str, caller: Caller) -> None:
        self.name, self.caller = name, caller
        self._repos, self._store = repos, repos._store

    def check_exists(self) -> None:
        """Raise ``HubError`` 404 unless there is such a model."""
        try:
            _no_release(self._store.resolve(self.name))
        except NotFound:
            raise repo_not_found(self.name, anonymous=False) from None

    def commit(self, revision: str) -> Commit:
        """Return the version that a revision names: a branch, a tag or a commit's id.

        Raises:
            HubError: There is no such model or revision, or the revision names a release that the
                caller may not read.
        """
        which = f"b3:{revision}" if _OID.match(revision) else revision
        try:
            # a name holds no '@': whatever the revision is, the model is this one
            ref = ModelRef.parse(f"{self.name}@{which}")
            if ref.release is not None:
                release = ModelRef.parse(ref.release).model
                if not self.caller.may_read(release):
                    raise NotFound(f"{release} is no release that this caller may know of")
            found = self._repos._commit(ref)
        except (NotFound, UsageError):
            self.check_exists()
            raise revision_not_found(revision) from None
        return Commit(found, oid_of(found))

    def main(self) -> Version:
        """Return the version that ``main`` names; ``NotFound`` if there is none, or a release."""
        return self._repos._main(self.name)

    def open(self, commit: Commit) -> Model:
        """Open a commit of this model."""
        return self._repos._open(commit.version)

    def version(self, number: int) -> Version:
        """Return the version of this number."""
        return self._store.resolve(f"{self.name}@{number}")

    def versions(self) -> list[Version]:
        """Return all versions, newest first."""
        return self._store.versions(self.name)

    def branches(self) -> dict[str, Version]:
        """Return the aliases, and ``main``, with the versions that they point to."""
        found = {MAIN: self.main()}
        return found | {alias.name: alias.version for alias in self._store.aliases(self.name)}


class WritableRepo(Repo):
    """One model, for a caller that may write to it; ``Repos.writable`` gives it out."""

    def head(self, branch: str) -> Version | None:
        """Return the version that a branch is at; ``None`` for ``main`` of a new model.

        Raises:
            HubError: 404, there is no such branch.
        """
        try:
            if branch == MAIN:
                return self.main()
            return self._store.resolve(f"{self.name}@{check_alias(branch)}")
        except (NotFound, InvalidName):
            if branch == MAIN:
                return None
            raise HubError(
                404, f"{self.name} has no branch {branch[:200]!r}", "RevisionNotFound"
            ) from None

    def add_branch(self, branch: str, commit: Commit, message: str) -> None:
        """Make a new alias; ``HubError`` 409 if there is one of that name."""
        if branch in self.branches():
            raise HubError(409, f"Reference already exists: {branch[:200]}")
        self._store.alias(self.name, branch, commit.version, message=message)
        self.forget()

    def remove_branch(self, branch: str, message: str) -> None:
        """Remove an alias."""
        self._store.remove_alias(self.name, branch, message=message)
        self.forget()

    def stored_sha256s(self) -> set[str]:
        """Return the SHA-256 of every file of the newest version; empty for a new model."""
        try:
            return {file.sha256 for file in self._store.load(self.name).files}
        except NotFound:
            return set()

    def last_versions(self, count: int) -> Iterator[Model]:
        """Open the last versions, one after the other, newest first."""
        return map(self._store.load, self._store.versions(self.name, count))

    def forget(self) -> None:
        """Look up the branches again: one was moved here."""
        self._repos._forget(self.name)
