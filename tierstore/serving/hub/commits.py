"""Commits of the Hub as saves: the files that a commit names, and all others of its parent."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tierstore.arguments import as_text
from tierstore.errors import Conflict, InvalidName, SourceError, UsageError
from tierstore.format.manifest import FileEntry
from tierstore.format.paths import check_new_path, check_path
from tierstore.format.reflog import RefEntry
from tierstore.ids import Digest
from tierstore.modelstore.home.settling import Publication, Purged
from tierstore.modelstore.loading.opener import VerifiedOpened
from tierstore.modelstore.names.names import Before
from tierstore.modelstore.saving.reused_file import reused_file
from tierstore.modelstore.saving.source import (
    SUFFIX,
    BytesFile,
    DiskFile,
    SourceFile,
    summary_of_files,
    warn_of_alike,
)
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version, version_of
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.bodies import check_depth
from tierstore.serving.hub.repos import MAIN, OID_DIGITS, WritableRepo
from tierstore.serving.hub.spool import UploadSpool, check_oid

_LARGEST_INLINE_BYTES = 10 << 20
_VERSIONS_SEARCHED = 64
_COPY_BYTES = 8 << 20
_COMMIT = re.compile(r"[0-9a-f]{7,64}\Z")


@dataclass(slots=True)
class CommitRequest:
    """The content of a request to commit.

    Attributes:
        summary: First line of the message.
        description: The rest of the message.
        parent: Commit id that the branch must be at; ``None`` for any.
        inline: Content by path of files that came within the request.
        uploaded: SHA-256 and size in bytes by path of files that were uploaded before; the size is
            ``None`` where it was not given.
        removed: Paths of files and folders to remove; a folder ends with ``/``.
    """

    summary: str = ""
    description: str = ""
    parent: str | None = None
    inline: dict[str, bytes] = field(default_factory=dict)
    uploaded: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """The whole message, for the log."""
        return "\n\n".join(part for part in (self.summary, self.description) if part)


def parse_commit(body: bytes) -> CommitRequest:
    """Parse the lines of JSON that clients send.

    Raises:
        HubError: 400, a line is malformed or nested too deeply, or a path leaves the repository.
    """
    found = CommitRequest()
    for line in body.splitlines():
        if not line.strip():
            continue
        check_depth(line)
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
            _take(found, key, value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise HubError(400, str(error)) from None
            raise HubError(400, "a line of the commit is malformed") from None
    return found


def _take(found: CommitRequest, key: str, value: Mapping[str, Any]) -> None:
    if key == "header":
        found.summary = _note("summary", value.get("summary"), 1000)
        found.description = _note("description", value.get("description"), 100_000)
        parent = value.get("parentCommit")
        if parent is not None and not (isinstance(parent, str) and _COMMIT.match(parent)):
            raise HubError(400, "parentCommit is not a commit id")
        found.parent = parent
    elif key == "file":
        path = _new_path(value["path"])
        if value.get("encoding", "base64") != "base64":
            raise HubError(400, "the content of a file must be in base64")
        try:
            data = base64.b64decode(value["content"], validate=True)
        except binascii.Error:
            raise HubError(400, f"the content of {path[:200]} is not base64") from None
        if len(data) > _LARGEST_INLINE_BYTES:
            raise HubError(400, f"{path[:200]} is too large for a commit: upload it by git-lfs")
        found.inline[path] = data
        found.uploaded.pop(path, None)
    elif key == "lfsFile":
        path = _new_path(value["path"])
        size = value.get("size")
        oid, _ = check_oid(value["oid"], 0 if size is None else size)
        found.uploaded[path] = (oid, size)
        found.inline.pop(path, None)
    elif key == "deletedFile":
        found.removed.append(check_path(value["path"]))
    elif key == "deletedFolder":
        found.removed.append(check_path(value["path"].rstrip("/")) + "/")
    else:
        raise HubError(400, f"this gateway does not know {str(key)[:50]!r} in a commit")


def _new_path(given: str) -> str:
    path = check_new_path(given)
    # as git itself: also by the other names that a file system may have for it
    if any(part.lower().rstrip(". ") in {".git", "git~1"} for part in path.split("/")):
        raise InvalidName(f"{path[:200]} lies in a .git folder, which clients would run hooks from")
    return path


def _note(key: str, given: object, most: int) -> str:
    return as_text(key, "" if given is None else given, "text")[:most]


class Committer:
    """Publishes commits as new versions.

    Args:
        store: Store to publish in.
        spool: Files that were uploaded.
    """

    def __init__(self, store: Store, spool: UploadSpool) -> None:
        self._store, self._spool = store, spool

    def commit(self, repo: WritableRepo, branch: str, asked: CommitRequest) -> Version:
        """Publish a new version of a model on a branch; the message names the caller's token.

        If the request names no parent, files that others committed meanwhile are kept. Whether the
        branch may move is checked before the version is published. If somebody else moves an alias
        between these two steps, milliseconds apart, the version stays in the log under its number,
        no branch points to it, and the answer says so: a log is never rewritten.

        Args:
            repo: The model, for a caller that may write to it.
            branch: ``main``, or an alias.
            asked: Request to carry out.

        Raises:
            HubError: 412, the branch is not at the parent; 404, there is no such branch, or a file
                was not uploaded; 409, others keep moving the branch, or purge this content.
            Conflict: The name is that of a release, or differs from another model's only by case.
        """
        others = self._store._names.check_new(repo.name, None).others
        for _ in range(8):
            parent = repo.head(branch)
            if asked.parent is not None and not _is_at(parent, asked.parent):
                raise HubError(
                    412, f"{branch} is not at {asked.parent}: somebody else committed first"
                )
            uploads = self._uploads(repo.name, asked)
            try:
                return self._publish(repo, branch, parent, asked, others)
            except Purged as error:
                raise HubError(409, str(error)) from None
            except Conflict as error:
                if asked.parent is not None:
                    raise HubError(412, f"{branch} moved meanwhile: {error}") from None
            except SourceError:
                self._refuse_changed(repo.name, asked)
                if self._uploads(repo.name, asked) == uploads:
                    raise
                # another commit has stored and dropped them, as one whose client had gone away
        raise HubError(409, f"{branch} keeps moving; try again")

    def _uploads(self, model: str, asked: CommitRequest) -> set[str]:
        """Return which of the uploads are there, by SHA-256."""
        uploaded = asked.uploaded.values()
        return {oid for oid, size in uploaded if self._spool.find(model, oid, size) is not None}

    def _refuse_changed(self, model: str, asked: CommitRequest) -> None:
        """Raise ``HubError`` 500 when uploads changed on the gateway's disk; they are removed."""
        oids = {oid for oid, _ in asked.uploaded.values()}
        changed = self._spool.drop_changed(model, oids)
        if changed:
            raise HubError(
                500,
                f"the upload of {', '.join(changed)} changed on the gateway's disk; nothing was "
                "published: upload it again",
            )

    def _publish(
        self,
        repo: WritableRepo,
        branch: str,
        parent: Version | None,
        asked: CommitRequest,
        others: Sequence[str],
    ) -> Version:
        model, who, names = repo.name, repo.caller.name, self._store._names
        before = None if parent is None else self._whole(parent)
        files = sorted(self._files(repo, before, asked), key=lambda file: file.path)
        if not files:
            raise HubError(400, "a commit must leave at least one file")
        warn_of_alike(file.path for file in files)
        newest = self._store._parts.home.log(model).last()
        message = f"{asked.message} ({who})" if who else asked.message
        pointed = branch != MAIN or any(a.name == MAIN for a in self._store.aliases(model))
        was = parent.number if parent is not None else None
        summary = summary_of_files(files)

        def append(digest: Digest) -> RefEntry:
            if parent is not None and digest == parent.digest:  # nothing changed
                return self._store._parts.home.log(model).entry(parent.number)
            if pointed:
                names.check_movable(model, branch, was)
            after = newest.seq if newest else 0
            return names.publish(model, digest, summary, message, after, seen=newest)

        def take_back(entry: RefEntry, why: BaseException) -> str:
            version = version_of(model, entry)
            if entry.seq == was:
                return f"{version} stays: nothing was published"
            return names.named.unpublish(version, why)

        try:
            saving = self._store._parts.saving
            selection = saving.select_base(files, "auto", model, Before(newest, others))
            with saving.begin(selection) as writer:
                how = Publication(append, take_back, own=self._store._parts.home.log(model).own)
                entry = writer.publish(how, files)
        finally:
            for file in files:
                file.close()
        version = version_of(model, entry)
        if pointed and version.number != was:
            names.point_to_new(model, branch, entry, message, was)
        repo.forget()
        self._spool.drop(model, [oid for oid, _ in asked.uploaded.values()])
        return version

    def _whole(self, version: Version) -> VerifiedOpened:
        """Open a version whose files are to be kept, which are so as a whole."""
        model = self._store.load(version)
        model.fold()
        return model._opened.verified()

    def _files(
        self, repo: WritableRepo, before: VerifiedOpened | None, asked: CommitRequest
    ) -> Iterator[SourceFile]:
        model = repo.name
        named = asked.inline.keys() | asked.uploaded.keys()
        if before is not None:
            for entry in before.manifest.files:
                if entry.path not in named and not _removed(entry.path, asked.removed):
                    yield self._kept(model, before, entry, entry.path)
        for path, data in asked.inline.items():
            if path.endswith(SUFFIX):
                yield _spooled(path, self._spool.keep(model, [data]))
            else:
                yield BytesFile(path, data)
        for path, (oid, size) in asked.uploaded.items():
            spooled = self._spool.find(model, oid, size)
            if spooled is not None:
                yield _spooled(path, spooled)
                continue
            found = _find_stored(repo, before, oid)
            if found is None:
                raise HubError(404, f"{path[:200]} was not uploaded, or too long ago: upload it")
            yield self._kept(model, *found, path)

    def _kept(
        self, model: str, holder: VerifiedOpened, file: FileEntry, as_path: str
    ) -> SourceFile:
        kept = reused_file(holder, file, as_path)
        chunk_size = self._store._parts.home.config.chunk_size
        if kept is not None and holder.manifest.chunk_size == chunk_size:
            return kept
        view = holder.view(file)
        # it has to be cut in another way: its new name makes it another kind of file
        parts = (
            view.read(start, end - start) for start, end in view.spans(0, view.size, _COPY_BYTES)
        )
        return _spooled(as_path, self._spool.keep(model, parts))


def _find_stored(
    repo: WritableRepo, newest: VerifiedOpened | None, oid: str
) -> tuple[VerifiedOpened, FileEntry] | None:
    """Find a file with this SHA-256 in the last versions of a model."""
    if newest is None:
        return None
    opened = (model._opened.verified() for model in repo.last_versions(_VERSIONS_SEARCHED))
    for holder in chain([newest], opened):
        for file in holder.manifest.files:
            if file.sha256.hex() == oid:
                return holder, file
    return None


def _spooled(path: str, where: Path) -> DiskFile:
    """Return a file of the spool as a source, which must be what its name says."""
    return DiskFile(path, where, bytes.fromhex(where.name))


def _is_at(parent: Version | None, commit: str) -> bool:
    return parent is not None and parent.digest.hex[:OID_DIGITS].startswith(commit[:OID_DIGITS])


def _removed(path: str, removed: list[str]) -> bool:
    return any(path == one or (one.endswith("/") and path.startswith(one)) for one in removed)
