"""Compares what entries say of the sizes of versions with the manifests."""

from __future__ import annotations

from collections.abc import Iterator

from tierstore.format.manifest import Manifest, patch_info, summary_of
from tierstore.format.reflog import RefEntry, Summary
from tierstore.ids import Digest
from tierstore.modelstore.care.check_findings import Finding
from tierstore.shown import counted


class Sizes:
    """What entries say, and what the manifests say that a check reads anyway.

    A patch changes no size: a version with patches has those of the full manifest below.
    """

    def __init__(self) -> None:
        self._said: list[tuple[str, Summary, Digest]] = []
        self._full: dict[Digest, Summary] = {}
        self._below: dict[Digest, Digest] = {}

    def said(self, key: str, entry: RefEntry, digest: Digest) -> None:
        """Take note of the entry with this key, which publishes a manifest."""
        if entry.summary:
            self._said.append((key, entry.summary, digest))

    def found(self, digest: Digest, manifest: Manifest) -> None:
        """Take note of a manifest."""
        info = patch_info(manifest)
        if info is None:
            self._full[digest] = summary_of(manifest)
        else:
            self._below[digest] = info.digests[0]

    def wrong(self) -> Iterator[Finding]:
        """Yield which entries say something else than the manifests.

        Of what cannot be read, or lies below a fold and is missing, nothing is said.
        """
        for key, said, digest in self._said:
            while digest in self._below:
                digest = self._below[digest]
            full = self._full.get(digest)
            if full is not None and full != said:
                yield Finding(
                    "damage",
                    key,
                    f"it says that the version has {_text(said)}, but it has {_text(full)}: "
                    "'tierstore ls' shows what it says; nothing else goes by that",
                )


def _text(of: Summary) -> str:
    files, tensors = counted(of.files, "file"), counted(of.tensors, "tensor")
    return f"{of.bytes} bytes in {files} with {tensors}"
