"""Checks a store: verifies every object that a version needs, and lists those that none needs.

Version after version is looked at, and cut into what it needs of each pack (``check_parts``); then
pack after pack in every tier (``check_copies``, ``check_data``). So memory grows with the versions
and packs of a store, and not with the chunks of all versions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import replace

from tierstore.errors import (
    BackendError,
    Damaged,
    InvalidName,
    NotFound,
    OutOfSpace,
    TierstoreError,
    UnsupportedFormat,
)
from tierstore.format import keys
from tierstore.format.layout import parse_move
from tierstore.format.manifest import Manifest, patch_info
from tierstore.format.reflog import RefEntry
from tierstore.format.tiers import pin_key
from tierstore.ids import Digest
from tierstore.modelstore.care.check_copies import Copies, CopyCheck, Looked, Suspects
from tierstore.modelstore.care.check_data import Item, ItemReader, Limits, PackData, Read
from tierstore.modelstore.care.check_findings import Finding, Problems, brief
from tierstore.modelstore.care.check_folds import FoldCheck, FoundFold, look_at_folds
from tierstore.modelstore.care.check_home import check_home
from tierstore.modelstore.care.check_logs import NO_ENTRY, NO_VERSION, by_log, by_model, model_of
from tierstore.modelstore.care.check_parts import NeededParts, distinct, read_layout
from tierstore.modelstore.care.check_patches import is_readable, named_below, needed_below
from tierstore.modelstore.care.check_removed import ExpiredVersions
from tierstore.modelstore.care.check_report import CheckReport
from tierstore.modelstore.care.check_sizes import Sizes
from tierstore.modelstore.care.check_users import Users
from tierstore.modelstore.care.readtimes import ReadTimes
from tierstore.modelstore.chunks.examine import examine, quarantine
from tierstore.modelstore.home.ahead import ahead
from tierstore.modelstore.home.collected import lengths_before
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import is_saving
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.refs import MOST_MISSING, highest_of
from tierstore.modelstore.names.claims import claims, pinned, split_log
from tierstore.modelstore.settings import Settings
from tierstore.shown import counted

_log = logging.getLogger("tierstore.check")


def check_store(
    home: Home,
    limits: Limits | None,
    *,
    settings: Settings,
    progress: Callable[[int, int], None] | None,
) -> CheckReport:
    """Verify a store. All that it may write are quarantine marks of packs that it found damaged.

    A mark is lifted again when all data was read, and a good copy of its pack was found.

    Args:
        home: The store's home.
        limits: How much of the data is read: chunks that a version needs are decoded and compared
            with their digests, and what patches change is computed to compare folds with it;
            ``None`` for metadata alone.
        settings: Limits on threads and memory, and where this node keeps when it read what.
        progress: Called with plain bytes read and in all.

    Raises:
        BackendError: Home failed; what was found until then was logged.
        OutOfSpace: There is no room for temporary files.
        KeyboardInterrupt: As it was raised; what was found until then was logged. While data was
            read, its message says how to read the rest.
    """
    parts = NeededParts()
    try:
        return _Check(home, settings, parts, progress).run(limits)
    finally:
        parts.close()


class _Check:
    def __init__(
        self,
        home: Home,
        settings: Settings,
        parts: NeededParts,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._home, self._settings, self._progress = home, settings, progress
        self._report = CheckReport()
        self._users, self._parts = Users(home), parts
        self._before, self._lasts = lengths_before(home.blobs), dict[str, int]()
        """How many entries logs had, by the collector's note and by what was checked so far."""
        self._claimed, self._sizes = 0, Sizes()
        self._expired = ExpiredVersions(home)
        self._folds: list[tuple[FoundFold, int]] = []
        """Folds that are what the patches give as far as metadata tells, with the bytes to compare.
        """
        self._needed: dict[Finding, list[tuple[Digest, bool]]] = {}
        """Findings with the manifests that they are about, and whether what is missing may have
        been collected with these.
        """
        self._bad_folds: list[str] = []
        self._unused_folds: set[str] = set()
        self._saving = is_saving(home.blobs)
        self._copies, self._suspects = Copies(home), Suspects()
        self._looked_at: set[Digest] = set()
        self._verified: set[bytes] = set()
        self._archived: set[bytes] = set()
        self._problems = Problems(home, self._users, parts)
        self._data = PackData(home, settings, self._copies, parts, self._problems, self._suspects)

    def run(self, limits: Limits | None) -> CheckReport:
        """Check the store; with limits its data as well."""
        is_told = False
        try:
            sizes = self._look(limits)
            self._quarantine(lift=limits is not None and not self._report.data.copies_left)
            self._look_again()
            is_told = True
            self._find_garbage(sizes.keys())
        except (TierstoreError, KeyboardInterrupt):
            self._tell(is_named=is_told)
            raise
        self._report.down = self._copies.down
        self._report.packs, self._report.archived = len(self._verified), len(self._archived)
        self._report.findings.sort(key=lambda f: (f.severity != "damage", f.key))
        return self._report

    def _look(self, limits: Limits | None) -> dict[bytes, tuple[int, int]]:
        self._check_refs()
        for digest in self._users.each():
            self._check_version(digest)
        self._report.findings += self._sizes.wrong()
        self._report.chunks = self._parts.chunks()
        sizes = self._check_packs(self._parts.packs())
        self._report.findings += check_home(self._home)
        self._check_folds()
        sizes |= self._check_stand_ins()
        if limits is not None:
            self._check_data(limits, sizes)
        return sizes

    def _tell(self, *, is_named: bool) -> None:
        """Log what was found when the check cannot go on, and quarantine it.

        Args:
            is_named: Whether the findings say who needs them, after a second look.
        """
        if not is_named:
            try:
                self._look_again()
            except TierstoreError:
                self._report.findings += self._problems.unconfirmed()
        for one in self._report.findings:
            needed = f" (needed by {', '.join(one.needed_by)})" if one.needed_by else ""
            _log.error("%s: %s: %s%s", one.severity, one.key, one.what, needed)
        if self._suspects:
            packs = counted(len(self._suspects), "pack")
            _log.warning("reading %s once more, to quarantine what has no good copy", packs)
        with suppress(TierstoreError):
            self._quarantine(lift=False)

    def _damage(
        self,
        key: str,
        what: object,
        needs: Digest | str | None = None,
        is_collectable: bool = False,
    ) -> None:
        """Note damage that hits one version, or all that need a manifest.

        Args:
            key: The key of the object.
            what: What is wrong with it.
            needs: The version, or the manifest; several may be hit by the same.
            is_collectable: Whether it goes with what needs it once that is removed.
        """
        users = (needs,) if isinstance(needs, str) else ()
        found = Finding("damage", key, brief(what, key), users)
        if isinstance(needs, Digest):  # who needs it is known once all chains were looked at
            needed = self._needed.setdefault(found, [])
            needed.append((needs, is_collectable and isinstance(what, NotFound)))
            if len(needed) > 1:
                return
        self._report.findings.append(found)

    def _look_again(self) -> None:
        """Say who needs what was found as of now."""
        self._users.forget_removals()
        self._name_users()
        self._report.findings += self._problems.look_again()

    def _name_users(self) -> None:
        """Say who needs what was found; what is missing of removed versions was collected."""
        findings: list[Finding] = []
        for one in self._report.findings:
            if one not in self._needed:
                findings.append(one)
                continue
            users: list[str] = []
            for digest, is_collected in self._needed[one]:
                named = self._users.of(digest)
                users += named.in_force if is_collected else named.every
            if users:
                findings.append(replace(one, needed_by=tuple(dict.fromkeys(users))))
        self._report.findings = findings
        self._needed.clear()

    @contextmanager
    def _noting(self, key: str, needs: Digest | str | None = None) -> Iterator[None]:
        try:
            yield
        except (Damaged, NotFound, UnsupportedFormat) as error:
            self._damage(key, error, needs)

    def _check_refs(self) -> None:
        folded: dict[str, str] = {}
        for segment, below in by_model(self._home.blobs):
            key = f"{keys.REFS}{segment}"
            try:
                model = model_of(segment)
            except InvalidName as error:
                self._damage(key, f"not a model's name: {error}")
                continue
            twin = folded.setdefault(model.casefold(), model)
            if twin != model:
                self._damage(key, f"{model!r} differs from {twin!r} only in case")
            logs = by_log(model, below)
            self._expired.begin(model, logs)
            self._check_model(model, logs, key)
        for prefix in [f"{keys.REFS}{log}/" for log in self._before]:
            if prefix not in self._lasts:  # nothing is left of it
                self._check_log(*split_log(prefix), [])
        self._check_pins()

    def _check_model(self, model: str, logs: Mapping[str, Sequence[str]], key: str) -> None:
        """Check the logs of a model.

        Args:
            model: The model's name.
            logs: The keys that were listed, by the names of the logs.
            key: What all of them lie below.
        """
        self._claimed = 0
        if self._home.reclaims:
            self._check_log(model, keys.REMOVED_LOG, logs.get(keys.REMOVED_LOG, ()))
        has_versions = self._check_log(model, keys.VERSION_LOG, logs.get(keys.VERSION_LOG, ()))
        for kind in (keys.VARIANTS, keys.ALIASES):
            for name, listed in logs.items():
                if name.startswith(kind):
                    self._check_log(model, name, listed)
        self._check_claimed(model, self._claimed)
        if not (has_versions or self._claimed):
            self._damage(key, "nothing was ever saved under this name: move it away")

    def _check_claimed(self, model: str, number: int) -> None:
        """Note which entries of versions are lost, as something names a higher one."""
        prefix = keys.ref_prefix(model, keys.VERSION_LOG)
        last = self._lasts.get(prefix, 0)
        for seq in range(last + 1, min(number, last + MOST_MISSING) + 1):
            self._check_number(model, keys.VERSION_LOG, seq)
        self._lasts[prefix] = max(last, number)

    def _check_pins(self) -> None:
        for pin in Pins(self._home.blobs).active():
            if (named := pinned(pin.ref)) is not None:
                self._check_claimed(*named)
            if not self._is_named(pin.version):
                self._damage(pin_key(pin.version.hex), f"it names {pin.version}, {NO_VERSION}")

    def _is_named(self, digest: Digest) -> bool:
        """Return whether a version or variant is this manifest, as far as logs were checked."""
        return self._users.knows(digest) or digest in self._expired.digests

    def _check_log(self, model: str, name: str, listed: Sequence[str]) -> bool:
        """Check the entries of a log; return whether there are any, or were."""
        prefix = keys.ref_prefix(model, name)
        found, hinted = set[int](), 0
        for key in listed:
            seq = keys.seq_of(key, prefix)
            if seq is not None:
                found.add(seq)
            elif key != prefix + keys.HEAD:
                self._damage(key, "it is no entry of this log")
            else:
                hinted = self._home.log(model, name).hinted()
        before = self._before.get(prefix[len(keys.REFS) : -1], 0)
        last = self._lasts[prefix] = max(highest_of(found), hinted, before)
        missing = last - len(found)
        if missing > MOST_MISSING:
            self._damage(prefix, f"{missing} entries or so are missing of {last}: {NO_ENTRY}")
        # what is written while this lists may not be listed, though what is behind it is
        every = range(1, last + 1) if missing <= MOST_MISSING else sorted(found)
        # of variants the newest come first, as these say what was taken back
        self._taken_back = set[int | None]()
        for seq in reversed(every) if name.startswith(keys.VARIANTS) else every:
            self._check_number(model, name, seq)
        for seq in sorted(seq for seq in found if seq > last):
            key = keys.entry_key(prefix, seq)
            self._damage(key, "entries before it are missing, so it is never reached")
        return bool(last or found)

    def _check_number(self, model: str, name: str, seq: int) -> None:
        log = self._home.log(model, name)
        key = log.key_of(seq)
        with self._noting(key, f"{model}@{seq}" if name == keys.VERSION_LOG else None):
            try:
                entry = log.entry(seq)
            except NotFound:
                raise NotFound(
                    f"it is missing, but later entries are there, or something names it: {NO_ENTRY}"
                ) from None
            self._report.refs += 1
            self._check_entry(model, name, key, entry)

    def _check_entry(self, model: str, name: str, key: str, entry: RefEntry) -> None:
        if name != keys.VERSION_LOG:
            numbers = [one.number for one in claims(name, [entry])]
            self._claimed = max(self._claimed, 1, *numbers)
        if entry.manifest is None:
            return
        digest = Digest.from_hex(entry.manifest)
        if self._expired.takes(name, entry, digest):
            return
        self._sizes.said(key, entry, digest)
        if name.startswith(keys.VARIANTS):
            self._taken_back.add(entry.previous)
            if entry.previous is not None or entry.seq in self._taken_back:
                return
            variant = name.removeprefix(keys.VARIANTS)
            self._users.add(digest, f"{model}@{entry.version}+{variant}")
        elif name == keys.VERSION_LOG:
            self._users.add(digest, f"{model}@{entry.version}")
            if entry.version != entry.seq:
                self._damage(key, f"it calls itself version {entry.version}")
        elif not self._is_named(digest):
            self._damage(key, f"it points to b3:{digest.hex}, {NO_VERSION}")

    def _check_version(self, digest: Digest) -> None:
        manifest = self._check_own(digest)
        if manifest is not None:
            self._check_members(manifest, digest)
            self._check_chain(manifest, digest)

    def _check_own(self, digest: Digest) -> Manifest | None:
        """Read a manifest and its layout, and note what that places where."""
        self._looked_at.add(digest)
        try:
            manifest = self._home.manifest(digest)
        except NotFound:
            gone = NotFound("it is missing; saving that content again writes it anew")
            self._problems.unread(keys.version_key(digest), gone, digest)
            return None
        except (Damaged, UnsupportedFormat) as error:
            self._problems.unread(keys.version_key(digest), error, digest)
            return None
        self._report.versions += 1
        self._sizes.found(digest, manifest)
        try:
            table = read_layout(self._home, digest, manifest)
        except (Damaged, NotFound, UnsupportedFormat) as error:
            self._problems.unread(keys.layout_key(digest), error, digest)
        else:
            self._parts.add(digest, table)
        return manifest

    def _check_chain(self, manifest: Manifest, digest: Digest) -> None:
        if patch_info(manifest) is None:
            return
        try:
            below = needed_below(self._home, digest)
        except (Damaged, NotFound, UnsupportedFormat) as error:
            below = named_below(self._home, digest)
            if all(is_readable(self._home, one) for one in below.read):  # else that one is named
                self._damage(keys.version_key(digest), error, digest, is_collectable=True)
        self._users.add_below(digest, below)

    def _check_stand_ins(self) -> dict[bytes, tuple[int, int]]:
        """Look at what is read in the place of folds with losses, as at what versions need.

        Returns:
            Frame bytes and plain bytes that are needed of the packs in which that lies.
        """
        sizes: dict[bytes, tuple[int, int]] = {}
        while found := self._problems.stand_ins(self._looked_at):
            for digest in found:
                self._check_own(digest)
            sizes |= self._check_packs(self._parts.packs_of(found))
        return sizes

    def _check_members(self, manifest: Manifest, digest: Digest) -> None:
        """Check that the log of every member of a release has the version that it names."""
        for member in manifest.members or ():
            log = self._home.log(member.model)
            self._check_claimed(member.model, member.version)
            with self._noting(log.key_of(member.version), digest):
                if log.entry(member.version).manifest != member.manifest.hex():
                    raise Damaged(f"a release names b3:{member.manifest.hex()} under this number")

    def _check_packs(self, packs: Iterable[bytes]) -> dict[bytes, tuple[int, int]]:
        """Check the footers of packs, and that each layout agrees with it.

        Returns:
            Frame bytes and plain bytes that are needed of each pack.
        """
        check = CopyCheck(self._home, self._copies, self._problems, self._suspects)
        sizes: dict[bytes, tuple[int, int]] = {}
        unfit: dict[bytes, Looked] = {}
        for pack, footers in ahead(check.read, packs):
            places = [place for _, own in distinct(self._parts.of(pack)) for place in own]
            frame_bytes = sum(place.frame_bytes for place in places)
            sizes[pack] = frame_bytes, sum(place.plain_bytes for place in places)
            looked = check.look(pack, set(places), footers)
            if looked.gone or looked.bad:
                unfit[pack] = looked
            self._count(pack, looked)
        self._problems.unfit.update(unfit)  # a way may lead through any of them
        for pack, looked in unfit.items():
            if check.look_behind(pack, looked, distinct(self._parts.of(pack))):
                self._data.bad.add(pack)
            self._count(pack, looked)
        return sizes

    def _count(self, pack: bytes, looked: Looked) -> None:
        if looked.verified:
            self._verified.add(pack)
        if looked.archived:
            self._archived.add(pack)

    def _check_folds(self) -> None:
        """Compare the metadata of every fold with its chain, where that is still there."""
        named = self._users.named
        live = {one.hex for one in named | self._expired.digests}
        found, self._unused_folds = look_at_folds(self._home, live)
        for fold in found:
            if fold.patch not in named:
                self._expired.add_fold(fold.full)
            elif fold.full is None:
                self._bad_folds.append(fold.key)
            elif (check := self._fold_check(fold)) and not self._differs(fold, check.differs):
                self._folds.append((fold, check.plain_bytes))

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
                fold.patch,
            )
        return bool(differs)

    def _check_data(self, limits: Limits, sizes: dict[bytes, tuple[int, int]]) -> None:
        """Decode every chunk of every tier's copy, and through moves what has none to be read."""
        items = self._data.items(sizes)
        for fold, plain_bytes in self._folds:
            items.append(Item(("", fold.key), plain_bytes, plain_bytes, self._fold_reader(fold)))
        path = self._settings.cache_dir / self._home.config.store_id / "checked.sqlite"
        with ReadTimes(path, "check") as times:
            data, down = self._report.data, self._copies.down
            reader = ItemReader(times, limits, self._progress, data, down)
            reader.read(items)
            while sizes := self._check_stand_ins():  # of folds in which damage was found
                reader.read(self._data.items(sizes))
        self._report.data_bytes = self._data.decoded_bytes

    def _fold_reader(self, fold: FoundFold) -> Read:
        def read(count: Callable[[int], None]) -> bool | None:
            check = self._fold_check(fold)
            try:
                differs = check.compare_data(count) if check is not None else ""
            except (Damaged, NotFound, UnsupportedFormat):  # it was named with its chunks
                return False
            except OutOfSpace:  # of the check itself
                raise
            except BackendError:  # the copy or the tier was named, or will be
                return None
            return not self._differs(fold, differs)

        return read

    def _quarantine(self, *, lift: bool) -> None:
        """Mark the packs that no tier has a good copy of; lift marks where one has."""
        marks = self._home.quarantine
        marked = marks.packs()
        for pack in self._suspects.keys() - marked:
            known = self._needed_of(pack)
            try:
                if quarantine(self._home, pack, self._suspects[pack], known).unfit:
                    marked.add(pack)
            except (BackendError, UnsupportedFormat) as error:
                what = f"it could not be quarantined, so saves may reuse it: {error}"
                self._damage(keys.pack_key(pack), what)
        for pack in marked - self._suspects.keys() if lift else ():
            found = examine(self._home, pack)
            # a save may reuse a delta that nothing needs now, and nobody has decoded that
            if found.good and found.deltas <= self._needed_of(pack):
                with suppress(BackendError):
                    marks.lift(pack)
                    marked.remove(pack)
        self._report.quarantined = marks.standing(marked, self._home.packs)

    def _needed_of(self, pack: bytes) -> set[bytes]:
        """Return the digests of the chunks that layouts place in a pack."""
        return {place.digest for part in self._parts.of(pack) for place in part.places()}

    def _find_garbage(self, needed: Set[bytes]) -> None:
        used = self._used_packs(needed)
        self._saving = self._saving or is_saving(self._home.blobs)
        live = {digest.hex for digest in self._users.named | self._expired.digests}
        self._garbage_packs(set(self._copies.every) - used)
        for prefix, what in ((keys.VERSIONS, "manifest"), (keys.LAYOUTS, "layout")):
            stored = {info.key for info in self._home.blobs.list(prefix)}
            unused = {key for key in stored if key.removeprefix(prefix) not in live}
            self._garbage(unused, f"a {what} that no ref points to")
        self._garbage(self._unused_folds, "a fold of no version")
        what = "a damaged fold: the patches below are read instead; it can be deleted"
        self._report.findings += [Finding("garbage", key, what) for key in self._bad_folds]

    def _used_packs(self, needed: Set[bytes]) -> set[str]:
        """Return the keys of packs that layouts name, and of those their frames moved to.

        Moves are followed where a reader must: a rebase's lead from good packs to old ones, too.
        """
        used: set[bytes] = set()
        left = {*needed} | self._expired.packs({*self._users.each()})
        fit = self._fit_packs()
        while left:
            pack = left.pop()
            used.add(pack)
            if pack in fit:
                continue
            for key in self._copies.moves.get(pack, ()):
                with suppress(Damaged, NotFound, UnsupportedFormat):  # it was named
                    left.update({*parse_move(self._home.blobs.get(key), pack, key)} - used)
        return set(map(keys.pack_key, used))

    def _fit_packs(self) -> set[bytes]:
        """Return the packs that a reader reads where they are."""
        tiers = [tier for tier in self._home.packs.tiers if tier.archive is None]
        held = {key for tier in tiers for key in self._copies.held[tier.name]}
        found = map(keys.pack_of, held - {*self._report.quarantined})
        packs = {pack for pack in found if pack is not None}
        return packs - self._suspects.keys() - self._home.condemned.known()

    def _garbage_packs(self, found: set[str]) -> None:
        condemned = found & set(map(keys.pack_key, self._home.condemned.known()))
        anew = found & set(map(keys.pack_key, self._copies.moves))
        again = "" if self._saving else "; saving that content again goes on with it"
        self._garbage(condemned, "a condemned pack: 'tierstore gc' deletes it", is_for_good=True)
        self._garbage(anew - condemned, "a pack of which what is needed was stored anew")
        left = found - condemned - anew
        self._garbage(left, f"a pack of a save that was not finished{again}")

    def _garbage(self, found: set[str], what: str, *, is_for_good: bool = False) -> None:
        # what cannot be read may need any object: then nothing is called garbage
        if not (self._report.damaged or self._problems.hides_packs):
            if self._saving and not is_for_good:
                what += "; a save that is running may use it: leave it alone"
            self._report.findings += [Finding("garbage", key, what) for key in sorted(found)]
