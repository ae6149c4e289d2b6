"""Quarantine marks: packs of which no durable tier has a good copy (format/SPEC.md section 8).

A mark is only ever set by who has just read the copies: ``chunks.examine``, for a check and a
scrub, and a repair. It keeps saves from reusing what is damaged; it deletes nothing, and readers do
without it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.forks import begin
from tierstore.format.keys import QUARANTINE, pack_key, quarantine_key
from tierstore.format.sealed import Kind, seal_body
from tierstore.ids import split_digests
from tierstore.modelstore.home.refs import whoami
from tierstore.tiers.durable.tiers import DurableTiers

_log = logging.getLogger("tierstore.quarantine")
_KEY = re.compile(re.escape(QUARANTINE) + r"([0-9a-f]{64})\Z")


class Quarantine:
    """The quarantine marks of one store. Thread-safe.

    Args:
        home_blobs: The store's home, where the marks lie.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._home_blobs = home_blobs
        self._known: dict[bytes, frozenset[bytes]] = {}
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def packs(self) -> set[bytes]:
        """Return the ids of all marked packs."""
        found = (_KEY.match(info.key) for info in self._home_blobs.list(QUARANTINE))
        return {bytes.fromhex(match[1]) for match in found if match}

    def chunks(self) -> Mapping[bytes, frozenset[bytes]]:
        """Return the digests of the chunks of every marked pack, by pack id.

        A mark never changes, so each is read once. One that cannot be read marks its pack all the
        same; its chunks are not known.
        """
        marked = self.packs()
        with self._lock:
            known = {pack: self._known[pack] for pack in marked if pack in self._known}
        new = [pack for pack in marked if pack not in known]
        if new:
            with ThreadPoolExecutor(min(8, len(new)), "tierstore-marks") as pool:
                read = dict(zip(new, pool.map(self._read, new), strict=True))
            known |= {pack: chunks for pack, chunks in read.items() if chunks is not None}
        with self._lock:
            self._known = known
        return {pack: known.get(pack, frozenset()) for pack in marked}

    def _read(self, pack: bytes) -> frozenset[bytes] | None:
        from tierstore.format.layout import parse_mark

        key = quarantine_key(pack)
        try:
            mark = parse_mark(self._home_blobs.get(key), pack, f"quarantine mark {key}")
        except NotFound:  # lifted since it was listed
            return None
        except (Damaged, UnsupportedFormat) as error:
            _log.warning("%s; its pack counts as damaged", error)
            return None
        return frozenset(split_digests(mark.chunks))

    def mark(self, pack: bytes, chunks: Iterable[bytes], *, tiers: Sequence[str], why: str) -> None:
        """Mark a pack whose copies the caller has just read, every one of them damaged.

        Args:
            pack: The id of the pack.
            chunks: The digests of the chunks in it.
            tiers: The names of the tiers whose copies were read.
            why: What is wrong with them.

        Raises:
            BackendError: Home did not take the mark.
        """
        from tierstore.format.layout import Mark, parse_mark

        key = quarantine_key(pack)
        body = Mark(
            pack=pack,
            chunks=b"".join(sorted(set(chunks))),
            tiers=list(tiers),
            why=why,
            who=whoami(),
            time_us=time.time_ns() // 1000,
        )
        sealed = seal_body(Kind.QUARANTINE, body)
        if self._home_blobs.put_if_absent(key, sealed):
            return
        with suppress(NotFound, UnsupportedFormat):  # another client's says the same
            try:
                parse_mark(self._home_blobs.get(key), pack, key)
            except Damaged:
                self._home_blobs.put(key, sealed)

    def lift(self, pack: bytes) -> None:
        """Delete the mark of a pack of which the caller has just read a whole good copy."""
        self._home_blobs.delete([quarantine_key(pack)])

    @staticmethod
    def standing(marked: Iterable[bytes], tiers: DurableTiers) -> list[str]:
        """Return the keys of the marked packs that a tier has, or may have; sorted.

        The mark of a pack that was collected stays, and is nothing that anybody could mend.
        """

        def may_be_there(key: str) -> bool:
            try:
                tiers.info(key)
            except NotFound:
                return False
            except BackendError:  # a tier could not be asked
                return True
            return True

        return sorted(filter(may_be_there, map(pack_key, marked)))
