"""Makes anew what a store cannot be opened without: config and list of tiers (SPEC.md 10.2)."""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice

import msgspec

from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, NotFound, UnsupportedFormat, UsageError
from tierstore.format import keys
from tierstore.format.chunking import DEFAULT_CHUNK, is_chunk_size
from tierstore.format.keys import RETENTION
from tierstore.format.manifest import Manifest
from tierstore.format.sealed import Kind, unseal_body
from tierstore.format.storeconfig import (
    RECLAIM_FEATURE,
    Features,
    StoreConfig,
    encode_config,
    parse_config,
)
from tierstore.format.tiers import (
    FEATURE,
    PINS,
    TIERS,
    TierList,
    parse_tiers,
    seal_tiers,
    tiers_key,
    tiers_seq,
)
from tierstore.modelstore.home.features import shows_reclaim, shows_tiers
from tierstore.modelstore.home.once import create_once
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.reclaim.repair.objects import Objects

_ID = re.compile(r"[0-9a-f]{32}\Z")
_ID_IN_TEXT = re.compile(rb'"store_id": *"([0-9a-f]{32})"')
_CHECK_IN_TEXT = re.compile(rb'"check": *"([0-9a-f]{16})"')
_SAMPLE = 64
_Unread = (Damaged, NotFound, UnsupportedFormat)


def repair_tier_list(objects: Objects) -> TierList | None:
    """Return the newest list of tiers that can be read; write it anew where a newer one cannot.

    Raises:
        UnsupportedFormat: A list is of a newer version.
    """
    listed = sorted(objects.listed(TIERS), reverse=True)
    numbers = {key: seq for key in listed if (seq := tiers_seq(key)) is not None}

    def parse(key: str, data: memoryview) -> object:
        return parse_tiers(data, numbers[key], key)

    bad = {one.key: str(one.why) for one in objects.broken(Kind.TIERS, list(numbers), parse)}
    good = next((key for key in numbers if key not in bad), None)
    found = None
    if good is not None:
        with suppress(*_Unread):
            found = parse_tiers(objects.blobs.get(good), numbers[good], good)
    highest = max(numbers.values(), default=0)
    again = found
    if found is not None and found.seq < highest:
        again = msgspec.structs.replace(
            found,
            seq=highest + 1,
            write_id=uuid.uuid4().hex,
            time_us=time.time_ns() // 1000,
            who=whoami(),
            message="repair: newer lists were damaged",
        )
        create = partial(create_once, objects.blobs, tiers_key(again.seq), seal_tiers(again))
        if not objects.report.dry_run and not with_reserve(objects.blobs, create):
            return repair_tier_list(objects)  # somebody else wrote that list: it is read
    _tell_of_lists(objects, found, again, bad)
    return again


def _tell_of_lists(
    objects: Objects, found: TierList | None, again: TierList | None, bad: Mapping[str, str]
) -> None:
    """Say what came of damaged lists of tiers.

    Args:
        objects: Has the report.
        found: The newest list that can be read.
        again: The list that is in force now.
        bad: Why lists cannot be read, by their keys.
    """
    for key, why in bad.items():
        if found is None or again is None:
            done = "'tierstore tier add' adds each tier again; its packs are still there"
        elif int(key.removeprefix(TIERS)) < found.seq:
            done = "which tiers there were then; nothing needs it"
        else:
            done = (
                f"{objects.report.did(f'replaced by list {again.seq}')}: the tiers are those of "
                f"list {found.seq} again; 'tierstore tier ls' shows them, and what was changed "
                "since is lost"
            )
        objects.report.add("lost", key, why, done)


def repair_config(objects: Objects, store_ids: Sequence[str], given: str | None) -> StoreConfig:
    """Return the config of a store; make it anew from what the store holds if it cannot be read.

    Args:
        objects: Reads and writes home.
        store_ids: The ids that the markers of tiers name.
        given: The id that the user gives; ``None`` for the one that is found.

    Raises:
        NotFound: There is nothing of a store.
        UsageError: The tiers are of several stores, or the given id is none, or not that of the
            config, or of no tier.
        UnsupportedFormat: The store was made by a newer version.
    """
    blobs = objects.blobs
    if given is not None and not _ID.match(given):
        raise UsageError(f"{given!r} is no id of a store: it has 32 of 0-9 and a-f")
    try:
        data = bytes(blobs.get(keys.CONFIG))
    except NotFound:
        data, why = b"", "it is missing"
        if not any(blobs.list(keys.REFS)) and not any(blobs.list(keys.VERSIONS)):
            raise NotFound(
                f"{blobs.url} holds nothing of a store; make one with 'tierstore init URL'"
            ) from None
    else:
        try:
            config = parse_config(data, keys.CONFIG)
        except Damaged as error:
            why = str(error)
        else:
            _check_id(blobs, given, config)
            return config
    config, done = _config(objects, data, store_ids, given)
    done += _set_again(blobs)
    if not objects.report.dry_run:
        with_reserve(blobs, lambda: blobs.put(keys.CONFIG, encode_config(config)))
    objects.report.add("repaired", keys.CONFIG, why, objects.report.did(done))
    return config


def _set_again(blobs: BlobStore) -> str:
    """Return what to set again if it was lost with the config, which nothing shows."""
    commands = {RETENTION: "tierstore retention set", PINS: "tierstore pin"}
    gone = [what for prefix, what in commands.items() if not any(blobs.list(prefix))]
    if not gone:
        return ""
    return (
        f"; retention and pins of which nothing is left were lost if any were set: see to "
        f"{' and '.join(map(repr, gone))} before the next 'tierstore gc'"
    )


def _check_id(blobs: BlobStore, given: str | None, config: StoreConfig) -> None:
    """Refuse another id than that of a config of which nothing is lost."""
    if given is not None and given != config.store_id:
        raise UsageError(
            f"{blobs.url} is the store {config.store_id}, as its config.json says, and not "
            f"{given}; an id is given only where that is lost: repair without --store-id"
        )


def _config(
    objects: Objects, data: bytes, store_ids: Sequence[str], given: str | None
) -> tuple[StoreConfig, str]:
    """Return a config, and what is known of it."""
    blobs = objects.blobs
    said = [match.decode() for match in _ID_IN_TEXT.findall(data)]
    named = _features(data)
    in_gc = named.partition(b'"gc"')[2]
    features = Features(
        read=[FEATURE] if shows_tiers(blobs) or b'"tiers"' in named else [],
        gc=[RECLAIM_FEATURE] if _reclaims(blobs) or b"reclaim" in in_gc else [],
    )
    # in ``write`` alone it is as long as saves are waited for that began before it was
    reclaim = [RECLAIM_FEATURE] if features.gc or b"reclaim" in named else []
    features.write = sorted([*features.read, *reclaim])
    sizes = _chunk_sizes(blobs)
    for store_id in dict.fromkeys([*said, *store_ids]):
        for chunk_size in dict.fromkeys([*sizes, *(1 << bit for bit in range(20, 25))]):
            config = StoreConfig(store_id=store_id, chunk_size=chunk_size, features=features)
            if _CHECK_IN_TEXT.findall(data) == _CHECK_IN_TEXT.findall(encode_config(config)):
                _check_id(blobs, given, config)
                return config, "written as it was: its checksum says so"
    if given is not None and store_ids and given not in store_ids:
        raise UsageError(
            f"the tiers of {blobs.url} are those of the store {', '.join(store_ids)}, and not of "
            f"{given}: they could not be used; repair without --store-id, or with that id"
        )
    found = [given] if given is not None else [*dict.fromkeys([*store_ids, *said])]
    if len(found) > 1:
        raise UsageError(
            f"tiers of {blobs.url} name several stores, {', '.join(found)}; say with --store-id "
            "which of them this is"
        )
    chunk_size = next(iter(sizes), DEFAULT_CHUNK)
    new = StoreConfig(
        store_id=found[0] if found else uuid.uuid4().hex, chunk_size=chunk_size, features=features
    )
    whose = "the id that is left of it"
    if given is not None:
        whose = "the id that was given"
    elif store_ids:
        whose = "the id that its tiers name"
    elif not found:
        whose = "a new id, as no tier names one: what nodes have cached of it is read anew"
    done = f"made anew with {whose}, and chunks of {chunk_size} bytes as its versions have"
    if not features.gc:
        done += (
            "; nothing shows whether versions could be removed: if so, 'tierstore gc --enable' "
            "allows it again"
        )
    return new, done


def _features(data: bytes) -> bytes:
    """Return the part of a config that names features, as far as it is there."""
    return data.partition(b'"features"')[2].partition(b"}")[0]


def _reclaims(blobs: BlobStore) -> bool:
    """Return whether anything is there that only a store has in which versions can be removed."""
    if shows_reclaim(blobs):
        return True
    return any(f"/{keys.REMOVED_LOG}/" in info.key for info in blobs.list(keys.REFS))


def _chunk_sizes(blobs: BlobStore) -> list[int]:
    """Return the chunk sizes of some versions, the most frequent first."""
    return [size for size, _ in Counter(_sizes(blobs)).most_common() if is_chunk_size(size)]


def _sizes(blobs: BlobStore) -> Iterator[int]:
    for info in islice(blobs.list(keys.VERSIONS), _SAMPLE):
        with suppress(*_Unread):
            yield unseal_body(Kind.MANIFEST, blobs.get(info.key), Manifest, info.key).chunk_size
