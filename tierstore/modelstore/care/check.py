"""Checks a store: verifies every object that a version needs, and lists those that none needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from tierstore.errors import (
    Archived,
    BackendError,
    Damaged,
    InvalidName,
    NotFound,
    UnsupportedFormat,
)
from tierstore.format import keys
from tierstore.format.layout import Move, missing_chunks, parse_layout, parse_segment
from tierstore.format.manifest import Manifest
from tierstore.format.reflog import RefEntry
from tierstore.format.sealed import Kind, unseal_body
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.care.check_folds import FoldCheck, FoundFold, look_at_folds
from tierstore.modelstore.care.check_patches import named_below, needed_below
from tierstore.modelstore.care.check_removed import RemovedVersions
from tierstore.modelstore.chunks.examine import examine, quarantine
from tierstore.modelstore.chunks.moves import Moves
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.chunks.pool import ReadPool
from tierstore.modelstore.chunks.reader import ChunkReader
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.home.home import Home, chunks_of
from tierstore.modelstore.home.leases import is_saving
from tierstore.modelstore.settings import Settings
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers

Severity = Literal["damage", "garbage"]
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem that a check found.

    Attributes:
        severity: ``damage`` loses data or history; ``garbage`` only takes space.
        key: Key of the stored object.
        what: Description of the problem.
        needed_by: Versions that cannot be read in full because of it.
    """

    severity: Severity
    key: str
    what: str
    needed_by: tuple[str, ...] = ()


@dataclass(slots=True)
class CheckReport:
    """The findings of a check, and what it looked at.

    Attributes:
        findings: What was found, damage first.
        refs: Number of ref log entries read.
        versions: Number of distinct manifests verified, those of variants among them.
        packs: Number of packs whose footer was verified.
        archived: Number of packs that only an archive has: they are there, and cannot be verified.
        chunks: Number of distinct chunks that versions need.
        data_bytes: Plain bytes decoded and compared with their digests; 0 without ``read_data``.
        hot_bytes: Bytes of this node's hot tier that were compared; 0 without ``hot``.
        quarantined: Keys of the packs that are quarantined, whoever did it: no tier has a good
            copy, and saves store anew what is in them.
    """

    findings: list[Finding] = field(default_factory=list)
    refs: int = 0
    versions: int = 0
    packs: int = 0
    archived: int = 0
    chunks: int = 0
    data_bytes: int = 0
    hot_bytes: int = 0
    quarantined: list[str] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether data or history is lost."""
        return any(finding.severity == "damage" for finding in self.findings)

    @property
    def garbage_keys(self) -> list[str]:
        """Keys of objects that no version needs."""
        return [finding.key for finding in self.findings if finding.severity == "garbage"]


def check_store(
    home: Home,
    *,
    read_data: bool,
    settings: Settings,
    progress: Callable[[int, int], None] | None,
) -> CheckReport:
    """Verify a store. All that it may write are quarantine marks of packs that it found damaged.

    A mark is lifted again when ``read_data`` finds a good copy of its pack.

    Args:
        home: The store's home.
        read_data: Also decode every chunk that a version needs and compare its digest, and compute
            what patches change to compare folds with it.
        settings: Limits on threads and memory for ``read_data``.
        progress: With ``read_data``, called with plain bytes done and in all.
    """
    return _Check(home, settings, progress).run(read_data)


class _Check:
    def __init__(
        self, home: Home, settings: Settings, progress: Callable[[int, int], None] | None
    ) -> None:
        self._home, self._settings, self._progress = home, settings, progress
        self._report = CheckReport()
        self._users: dict[Digest, list[str]] = {}
        self._removed = RemovedVersions(home)
        self._places: dict[ChunkPlace, list[Digest]] = {}
        self._tables: dict[Digest, ChunkTable] = {}
        self._bad_packs: set[bytes] = set()
        self._folds: list[FoundFold] = []
        self._fold_bytes = 0
        self._bad_folds: list[str] = []
        self._unused_folds: set[str] = set()
        self._suspects: dict[bytes, dict[ChunkPlace, ChunkTable]] = {}
        """Packs of which a copy is damaged in every tier, with the frames that are."""
        self._saving = is_saving(home.blobs)
        # each tier's copy of a pack is looked at: another one's being good does not mend it
        self._copies = {
            tier.name: {info.key: info.size for info in tier.blobs.list(keys.PACKS)}
            for tier in home.packs.tiers
        }

    def run(self, read_data: bool) -> CheckReport:
        self._check_refs()
        for digest in list(self._users):
            self._note_users(named_below(self._home, digest), self._users[digest])
        for digest in self._users:
            self._check_version(digest)
        self._check_packs()
        self._check_segments()
        self._check_folds()
        if read_data:
            self._check_data()
        self._quarantine(lift=read_data)
        self._find_garbage()
        self._report.findings.sort(key=lambda f: (f.severity != "damage", f.key))
        return self._report

    def _damage(self, key: str, what: object, users: list[str] | None = None) -> None:
        self._report.findings.append(Finding("damage", key, str(what), tuple(users or ())))

    @contextmanager
    def _noting(self, key: str, users: list[str] | None = None) -> Iterator[None]:
        try:
            yield
        except (Damaged, NotFound, UnsupportedFormat) as error:
            self._damage(key, error, users)

    def _check_refs(self) -> None:
        folded: dict[str, str] = {}
        for segment in self._home.blobs.list_folders(keys.REFS):
            key = f"{keys.REFS}{segment}"
            try:
                model = keys.unsegment(segment)
                if keys.segment(model) != segment:
                    raise InvalidName(f"{segment!r} is not how the name would be written")
            except (UnicodeDecodeError, InvalidName) as error:
                self._damage(key, f"not a model's name: {error}")
                continue
            twin = folded.setdefault(model.casefold(), model)
            if twin != model:
                self._damage(key, f"{model!r} differs from {twin!r} only in case")
            self._removed.begin(model)
            if self._home.reclaims:
                self._check_log(model, keys.REMOVED_LOG)
            self._check_log(model, keys.VERSION_LOG)
            for variant in self._home.variants(model):
                self._check_log(model, keys.VARIANTS + variant)
            for alias in self._home.aliases(model):
                self._check_log(model, keys.ALIASES + alias)

    def _check_log(self, model: str, name: str) -> None:
        prefix = keys.ref_prefix(model, name)
        log = self._home.log(model, name)
        written = log.hinted()  # before the list: others may append meanwhile
        found = {
            info.key
            for info in self._home.blobs.list(prefix)
            if not info.key.endswith("/" + keys.HEAD)
        }
        if written and keys.entry_key(prefix, written) not in found:
            self._damage(keys.entry_key(prefix, written), "it is missing, but the hint names it")
        for seq in range(1, len(found) + 1):
            key = keys.entry_key(prefix, seq)
            found.discard(key)
            self._report.refs += 1
            users = [f"{model}@{seq}"] if name == keys.VERSION_LOG else None
            with self._noting(key, users):
                self._check_entry(model, name, key, log.entry(seq))
        for key in sorted(found):
            self._damage(key, "entries before it are missing, so it is never reached")

    def _check_entry(self, model: str, name: str, key: str, entry: RefEntry) -> None:
        if entry.manifest is None:
            return
        digest = Digest.from_hex(entry.manifest)
        if self._removed.takes(name, entry, digest):
            return
        if name.startswith(keys.VARIANTS):
            variant = name.removeprefix(keys.VARIANTS)
            self._users.setdefault(digest, []).append(f"{model}@{entry.version}+{variant}")
        elif name == keys.VERSION_LOG:
            self._users.setdefault(digest, []).append(f"{model}@{entry.version}")
            if entry.version != entry.seq:
                self._damage(key, f"it calls itself version {entry.version}")
        elif digest not in {*self._users, *self._removed.digests}:
            self._damage(key, f"it points to b3:{digest.hex}, which no version has")

    def _note_users(self, needed: list[Digest], users: list[str]) -> None:
        for digest in needed:
            known = self._users.setdefault(digest, [])
            known += [user for user in users if user not in known]

    def _check_version(self, digest: Digest) -> None:
        users = self._users[digest]
        key = keys.version_key(digest)
        manifest: Manifest | None = None
        with self._noting(key, users):
            manifest = self._home.manifest(digest)
            self._report.versions += 1
        if manifest is None:
            return
        self._check_members(manifest, users)
        with self._noting(key, users):
            needed_below(self._home, digest)
        key = keys.layout_key(digest)
        with self._noting(key, users):
            try:
                data = self._home.blobs.get(key)
            except NotFound:
                raise NotFound(
                    "it is missing; 'tierstore layout rebuild --all' makes it anew"
                ) from None
            table = parse_layout(data, digest, f"layout {key}")
            missing = missing_chunks(table, chunks_of(manifest))
            if missing:
                raise Damaged(f"it has no place for {len(missing)} of the version's chunks")
            self._tables[digest] = table
            for place in table:
                self._places.setdefault(place, []).append(digest)

    def _check_members(self, manifest: Manifest, users: list[str]) -> None:
        """Check that the log of every member of a release has the version that it names."""
        for member in manifest.members or ():
            log = self._home.log(member.model)
            with self._noting(log.key_of(member.version), users):
                if log.entry(member.version).manifest != member.manifest.hex():
                    raise Damaged(f"a release names b3:{member.manifest.hex()} under this number")

    def _users_of(self, digests: list[Digest]) -> list[str]:
        return sorted({user for digest in digests for user in self._users[digest]})

    def _check_packs(self) -> None:
        """Check every pack's footer, and that each layout agrees with it."""
        by_pack: dict[bytes, list[ChunkPlace]] = {}
        for place in self._places:
            by_pack.setdefault(place.pack, []).append(place)
        self._report.chunks = len({place.digest for place in self._places})
        for pack, places in by_pack.items():
            users = self._users_of([d for place in places for d in self._places[place]])
            key = keys.pack_key(pack)
            try:
                self._check_pack(key, places)
            except (Damaged, NotFound, UnsupportedFormat) as error:
                self._damage(key, error, users)
                self._bad_packs.add(pack)

    def _check_pack(self, key: str, places: list[ChunkPlace]) -> None:
        copies = self._copies_of(key)
        if not copies:
            lost = self._unmoved(places)
            if isinstance(lost, Archived):  # moved, and archived there
                self._report.archived += 1
            elif lost is not None:
                raise lost
            return
        copies = [(tier, size) for tier, size in copies if tier.archive is None]
        if not copies:
            self._report.archived += 1
            return
        self._report.packs += 1
        bad: dict[str, Damaged | NotFound | UnsupportedFormat] = {}
        for tier, size in copies:
            try:
                _, stored = read_footer(tier.blobs, key, size)
                if not set(places) <= set(stored):
                    raise Damaged("a layout and the pack's own index do not agree")
            except (Damaged, NotFound, UnsupportedFormat) as error:
                bad[tier.name] = error
        if len(bad) == len(copies):
            self._suspects.setdefault(places[0].pack, {})
            if self._unmoved(places) is not None:
                raise bad[copies[0][0].name]
            return
        for name, why in bad.items():
            self._bad_copy(key, name, str(why))

    def _unmoved(self, places: list[ChunkPlace]) -> NotFound | Damaged | BackendError | None:
        """Return what a reader of these frames raises if no move leads to one of them."""
        moves = Moves(self._home.blobs, self._home.packs)
        for place in places:
            if not moves.follow(place):
                return moves.lost(place)
        return None

    def _bad_copy(self, key: str, tier: str, why: str) -> None:
        """Note a damaged copy; no version is affected, as another tier has a good one."""
        self._damage(key, f"its copy in tier {tier} is bad, another one is good: {why}")

    def _copies_of(self, key: str) -> list[tuple[DurableTier, int]]:
        """Return the tiers that have a pack, also one written since the listing, and its size."""
        tiers = self._home.packs.tiers
        found = [(t, self._copies[t.name][key]) for t in tiers if key in self._copies[t.name]]
        if not found:
            for tier in tiers:
                with suppress(NotFound):
                    found.append((tier, tier.blobs.info(key).size))
        return found

    def _check_segments(self) -> None:
        for info in self._home.blobs.list(keys.INDEX):
            try:
                parse_segment(self._home.blobs.get(info.key), info.key)
            except NotFound:  # replaced since we listed
                continue
            except (Damaged, UnsupportedFormat):
                # nothing reads it but the search for duplicates
                what = "a damaged index segment: duplicates may be missed; it can be deleted"
                self._report.findings.append(Finding("garbage", info.key, what))

    def _check_folds(self) -> None:
        """Compare the metadata of every fold with its chain, where that is still there."""
        found, self._unused_folds = look_at_folds(self._home, {one.hex for one in self._users})
        for fold in found:
            if fold.full is None:
                self._bad_folds.append(fold.key)
                continue
            check = self._fold_check(fold)
            if check is not None and not self._differs(fold, check.differs):
                self._folds.append(fold)
                self._fold_bytes += check.plain_bytes

    def _fold_check(self, fold: FoundFold) -> FoldCheck | None:
        # what cannot be read is named where it is looked at, and a fold needs nothing below it
        with suppress(Damaged, NotFound, UnsupportedFormat):
            assert fold.full is not None
            return FoldCheck(self._home, self._settings, fold.patch, fold.full)
        return None

    def _differs(self, fold: FoundFold, differs: str) -> bool:
        if differs:
            self._damage(
                fold.key,
                f"the fold is not what the patches below give: {differs} differs; delete this "
                "object, so that the patches are read instead",
                self._users[fold.patch],
            )
        return bool(differs)

    def _check_data(self) -> None:
        """Decode every chunk of every tier's copy, and through moves what has none to be read."""
        every = self._home.packs.tiers
        tiers = [tier for tier in every if tier.archive is None]
        held = [set(self._copies[tier.name]) for tier in tiers]
        needed = {place.pack for place in self._places}
        moved = {keys.pack_key(pack) for pack in needed if pack.hex() in self._moves}
        archived = set().union(*self._copies.values()) - moved  # else nobody can read them
        held[0] |= set(map(keys.pack_key, needed)).difference(*held, archived)
        work = [
            (
                number,
                digest,
                [
                    place
                    for place in table
                    if self._places[place][0] == digest
                    and keys.pack_key(place.pack) in held[number]
                ],
            )
            for number in range(len(tiers))
            for digest, table in self._tables.items()
        ]
        total = sum(place.plain_bytes for _, _, places in work for place in places)
        total += self._fold_bytes
        done = 0

        def count(plain_bytes: int) -> None:
            nonlocal done
            done += plain_bytes
            if self._progress:
                self._progress(done, total)

        for number, digest, places in work:
            first = DurableTiers([tiers[number], *(t for t in every if t is not tiers[number])])
            table = self._tables[digest]
            pool = ReadPool(
                self._home.blobs,
                first,
                table,
                threads=self._settings.threads,
                memory_limit_bytes=self._settings.memory_limit_bytes,
            )
            reader = ChunkReader(pool, table)
            for batch in batches(places, lambda place: place.plain_bytes, _BATCH_BYTES):
                self._read_batch(reader, table, batch)
                count(sum(place.plain_bytes for place in batch))
            self._note_bad_copies(pool, table)
            self._report.data_bytes += pool.bytes_decoded
        self._check_fold_data(count)

    def _note_bad_copies(self, pool: ReadPool, table: ChunkTable) -> None:
        for bad in pool.bad_copies:
            if bad.moved:  # damaged in every tier, and stored again since
                self._suspect(pool.moves.way(bad.place)[:-1], table)
            else:
                self._bad_copy(keys.pack_key(bad.place.pack), ", ".join(bad.tiers), bad.why)

    def _check_fold_data(self, count: Callable[[int], None]) -> None:
        for fold in self._folds:
            check = self._fold_check(fold)
            with suppress(Damaged, NotFound, UnsupportedFormat):  # it was named with its chunks
                self._differs(fold, check.compare_data(count) if check is not None else "")

    def _read_batch(self, reader: ChunkReader, table: ChunkTable, batch: list[ChunkPlace]) -> None:
        wants = [Want(place, memoryview(bytearray(place.plain_bytes))) for place in batch]
        try:
            reader.read(wants, own=True)
            reader.check_proofs(batch)
        except (Archived, Damaged, NotFound, UnsupportedFormat):
            for want in wants:  # one by one, to name each chunk
                key = keys.pack_key(want.place.pack)
                if want.place.pack in self._bad_packs:
                    continue
                try:
                    reader.read([want], own=True)
                    reader.check_proofs([want.place])
                except Archived:
                    continue
                except (Damaged, NotFound, UnsupportedFormat) as error:
                    self._damage(key, error, self._users_of(self._places[want.place]))
                    self._suspect(reader.pool.moves.way(want.place), table)

    def _suspect(self, way: list[ChunkPlace], table: ChunkTable) -> None:
        """Suspect the packs on the way to a chunk, as it could be read in none of them."""
        for place in way:
            self._suspects.setdefault(place.pack, {})[place] = table

    def _quarantine(self, *, lift: bool) -> None:
        """Mark the packs that no tier has a good copy of; lift marks where one has."""
        marks = self._home.quarantine
        known: dict[bytes, set[bytes]] = {}
        for place in self._places:
            known.setdefault(place.pack, set()).add(place.digest)
        marked = marks.packs()
        for pack, suspects in self._suspects.items():
            if pack in marked:
                continue
            try:
                if quarantine(self._home, pack, suspects, known.get(pack, ())).unfit:
                    marked.add(pack)
            except (BackendError, UnsupportedFormat) as error:
                what = f"it could not be quarantined, so saves may reuse it: {error}"
                self._damage(keys.pack_key(pack), what)
        for pack in marked - self._suspects.keys() if lift else ():
            if examine(self._home, pack).good:
                with suppress(BackendError):
                    marks.lift(pack)
                    marked.remove(pack)
        self._report.quarantined = sorted(map(keys.pack_key, marked))

    def _find_garbage(self) -> None:
        used = self._used_packs()
        self._saving = self._saving or is_saving(self._home.blobs)
        live = {digest.hex for digest in {*self._users, *self._removed.digests}}
        self._garbage(
            {key for held in self._copies.values() for key in held} - used,
            "a pack that no version uses",
        )
        for prefix, what in ((keys.VERSIONS, "manifest"), (keys.LAYOUTS, "layout")):
            stored = {info.key for info in self._home.blobs.list(prefix)}
            unused = {key for key in stored if key.removeprefix(prefix) not in live}
            self._garbage(unused, f"a {what} that no ref points to")
        self._garbage(self._unused_folds, "a fold of no version")
        what = "a damaged fold: the patches below are read instead; it can be deleted"
        self._report.findings += [Finding("garbage", key, what) for key in self._bad_folds]

    def _used_packs(self) -> set[str]:
        """Return the keys of packs that layouts name, and of those their frames moved to.

        Moves are followed where a reader must: a rebase's lead from good packs to old ones, too.
        """
        used: set[bytes] = set()
        left = {place.pack for place in self._places} | self._removed.packs(self._users.keys())
        fit = self._fit_packs()
        while left:
            pack = left.pop()
            used.add(pack)
            if pack in fit:
                continue
            for key in self._moves.get(pack.hex(), ()):
                with self._noting(key):
                    move = unseal_body(Kind.MOVE, self._home.blobs.get(key), Move, key)
                    left.update({bytes.fromhex(into) for into in move.into} - used)
        return set(map(keys.pack_key, used))

    def _fit_packs(self) -> set[bytes]:
        """Return the packs that a reader reads where they are."""
        tiers = [tier for tier in self._home.packs.tiers if tier.archive is None]
        held = {key for tier in tiers for key in self._copies[tier.name]}
        found = map(keys.pack_of, held - {*self._report.quarantined})
        packs = {pack for pack in found if pack is not None}
        return packs - self._suspects.keys() - self._home.condemned.among(packs)

    @cached_property
    def _moves(self) -> dict[str, list[str]]:
        """Return the keys of all moves by the id of their pack in hex."""
        moves: dict[str, list[str]] = {}
        for info in self._home.blobs.list(keys.MOVES):
            pack_hex = info.key.removeprefix(keys.MOVES).partition("-")[0]
            moves.setdefault(pack_hex, []).append(info.key)
        return moves

    def _garbage(self, found: set[str], what: str) -> None:
        # what cannot be read may need any object: then nothing is called garbage
        if not self._report.damaged:
            if self._saving:
                what += ", unless the save that is running now does: leave it alone"
            self._report.findings += [Finding("garbage", key, what) for key in sorted(found)]
