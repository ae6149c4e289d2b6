"""How large versions are: as their entries say, or early ones by their manifests.

A manifest never changes, so what was found in one is kept in a local file for the next process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tierstore.blobs.base import BlobInfo
from tierstore.errors import OF_ONE
from tierstore.format.manifest import summary_of
from tierstore.format.reflog import Summary
from tierstore.ids import Digest
from tierstore.modelstore.home.ahead import ahead
from tierstore.modelstore.home.chain import bottom_manifest
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.version import Version, with_summary
from tierstore.prepared import prepared

_log = logging.getLogger("tierstore.refs")
_PAGE = 256


def with_sizes(home: Home, versions: Sequence[Version], cache_path: Path) -> list[Version]:
    """Return versions with their sizes, also those of which the entry does not say them.

    Args:
        home: The store's home.
        versions: The versions and variants. A release stays without a size, and so does what cannot
            be read.
        cache_path: Local file where what was read is kept for the next process.
    """
    lacking = [one.digest for one in versions if one.size is None and not one.is_release]
    found = _summaries(home, list(dict.fromkeys(lacking)), ReadCache(cache_path))
    return [
        with_summary(one, found[one.digest]) if one.digest in found else one for one in versions
    ]


def _summaries(home: Home, digests: Sequence[Digest], cache: ReadCache) -> dict[Digest, Summary]:
    # a manifest never changes: it needs no stamp
    infos = {digest: BlobInfo(f"summaries/{digest.hex}", 0, 0.0) for digest in digests}
    kept = cache.get(infos.values())
    found = {
        digest: msgspec.json.decode(kept[info.key], type=prepared(Summary))
        for digest, info in infos.items()
        if info.key in kept
    }
    left = [digest for digest in digests if digest not in found]
    for at in range(0, len(left), _PAGE):
        new = dict(_read(home, left[at : at + _PAGE]))
        values = [(infos[digest], msgspec.json.encode(one)) for digest, one in new.items()]
        cache.put(values, time.time())
        found |= new
    return found


def _read(home: Home, digests: Sequence[Digest]) -> Iterator[tuple[Digest, Summary]]:
    def read(digest: Digest) -> Summary | None:
        try:
            return summary_of(bottom_manifest(home, digest))
        except OF_ONE as error:
            _log.info("%s; how large that version is is not known", error)
            return None

    for digest, summary in ahead(read, digests):
        if summary is not None:
            yield digest, summary
