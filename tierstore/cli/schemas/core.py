"""The output of ``--json``: one struct per command is the schema, the code and the documentation.

Fields are stable: new ones may be added, but none is renamed, removed or given another type. Keys
are sorted. A field whose name ends in ``bytes`` is an exact count, times are RFC 3339 in UTC, and
digests are ``b3:`` and 64 hex digits.

``SCHEMAS.md`` is made from here by ``python -m tierstore.cli.schemas.markdown``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec


class Schema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all structs that are printed as JSON."""


class VersionJson(Schema):
    """A published version; ``version`` counts from 1, and ``who`` is ``user@host``.

    ``variant`` names the lossy variant of the version that this is; null for the version itself.
    """

    model: str
    version: int
    variant: str | None
    digest: str
    created: datetime
    who: str
    message: str


class Save(VersionJson):
    """The new version, and what was written for it.

    Of the plain bytes, ``new_bytes`` were new to the store and ``reused_bytes`` were in it already.
    The new ones took ``stored_bytes`` in storage. Of them ``delta_bytes`` were stored as deltas,
    which took ``delta_stored_bytes``; ``base`` is the version that the deltas refer to,
    ``MODEL@NUMBER``, or null.
    """

    alias: str | None
    base: str | None
    logical_bytes: int
    new_bytes: int
    delta_bytes: int
    delta_stored_bytes: int
    reused_bytes: int
    stored_bytes: int
    chunks: int
    new_chunks: int
    objects: int
    seconds: float


class File(Schema):
    """A file of a model; ``sha256`` is in hex."""

    path: str
    bytes: int
    sha256: str


class Load(Schema):
    """The files that were written; their paths are relative to ``directory``.

    ``bytes_fetched`` were read from durable tiers. Of the plain bytes, ``reused_bytes`` came from
    hot tiers, ``delta_bytes`` were decoded from deltas and ``full_bytes`` from standalone frames.
    ``variant`` is null for the version itself.
    """

    model: str
    version: int
    variant: str | None
    digest: str
    directory: str
    files: list[File]
    bytes_fetched: int
    reused_bytes: int
    delta_bytes: int
    full_bytes: int


class SizedVersion(VersionJson):
    """A version, and how large its files are together; null where that cannot be read."""

    bytes: int | None
    files: int | None
    tensors: int | None


class ListedModel(Schema):
    """A model: how many versions it has, the newest one, and where its aliases point."""

    model: str
    versions: int
    latest: SizedVersion
    aliases: dict[str, int]


class Models(Schema):
    """All models, sorted by name."""

    models: list[ListedModel]


class ListedVersion(SizedVersion):
    """A version and the aliases that point to it."""

    aliases: list[str]


class Versions(Schema):
    """The versions of one model, newest first."""

    model: str
    versions: list[ListedVersion]


class StatFile(File):
    """A file and the number of its tensors, which is 0 for a file that is not safetensors.

    ``sha256`` is empty where patches change the file, until the version is folded.
    """

    tensors: int


class Pack(Schema):
    """A stored object: its size, and how many bytes of it hold chunks of this version.

    ``quarantined`` is true where a check found that no tier has a good copy of it.
    """

    pack: str
    bytes: int
    used_bytes: int
    quarantined: bool


class Lineage(Schema):
    """A version that this one was made from, and how."""

    relation: str
    digest: str


class Stat(VersionJson):
    """A version in full.

    ``unique_bytes`` are the plain bytes of its distinct chunks and ``stored_bytes`` their bytes in
    packs, which other versions may share. ``patches`` counts the patches that a read applies.
    """

    aliases: list[str]
    files: list[StatFile]
    tensors: int
    logical_bytes: int
    chunks: int
    unique_chunks: int
    unique_bytes: int
    stored_bytes: int
    packs: list[Pack]
    patches: int
    lineage: list[Lineage]


class TensorJson(Schema):
    """A tensor; ``codecs`` counts its chunks by codec, and ``ratio`` is stored by plain bytes."""

    name: str
    file: str
    dtype: str
    shape: list[int]
    bytes: int
    stored_bytes: int
    ratio: float
    codecs: dict[str, int]


class Tensors(Schema):
    """The tensors of a version; ``variant`` is null for the version itself."""

    model: str
    version: int
    variant: str | None
    digest: str
    tensors: list[TensorJson]


class LogEntry(Schema):
    """One entry of a log; ``version`` and ``digest`` are null where an alias was removed.

    They are also null where versions were removed or brought back: ``versions`` are their numbers,
    and ``seq`` is that of the log of removals. In a rollout ``percent`` of the nodes get version
    ``to`` instead; otherwise both are null.
    """

    seq: int
    action: str
    version: int | None
    digest: str | None
    to: int | None
    percent: float | None
    time: datetime
    who: str
    message: str
    versions: list[int]


class Log(Schema):
    """The log of a model, newest entry first.

    ``alias`` or ``variant`` name whose log it is; both are null for the log of the versions.
    """

    model: str
    alias: str | None
    variant: str | None
    entries: list[LogEntry]


class HistoryEntry(LogEntry):
    """An entry of the log of ``ref``: ``MODEL``, ``MODEL@ALIAS`` or ``MODEL@+VARIANT``."""

    ref: str


class History(Schema):
    """The logs of the whole store in one, newest entry first."""

    entries: list[HistoryEntry]


class AliasJson(Schema):
    """An alias and the version that it points to."""

    model: str
    alias: str
    version: int
    digest: str


class AliasRemoved(Schema):
    """The alias that was removed."""

    model: str
    alias: str


class Aliases(Schema):
    """All aliases of a model."""

    model: str
    aliases: list[AliasJson]


class AllAliases(Schema):
    """All aliases of all models and releases."""

    aliases: list[AliasJson]


class LastGc(Schema):
    """What the last garbage collection left, by its own figures; it ended at ``time``.

    ``garbage`` waits to be deleted, and ``removed`` is what only removed versions need that can be
    undeleted, both in all durable tiers together.
    """

    time: datetime
    who: str
    freed_bytes: int
    garbage_packs: int
    garbage_bytes: int
    removed_packs: int
    removed_bytes: int


class LeftOut(Schema):
    """A version that cannot be read, or a model of which nobody knows the versions."""

    name: str
    why: str


class Du(Schema):
    """The bytes that versions are made of, and what is saved; ``versions`` counts variants too.

    ``logical = dedup_saved + codec_saved + delta_saved + header + stored``, and ``unique`` is
    ``logical - dedup_saved``. ``header`` is the headers of safetensors files, which manifests hold.
    ``stored`` is the encoded chunks. The packs that hold them have ``pack_bytes``, of which
    ``overhead`` is footers and chunks that only other versions need. ``last_gc`` is of the whole
    store, and null with a model, or where no garbage was collected yet. What is in ``left_out``
    counts nowhere.
    """

    models: int
    versions: int
    chunks: int
    packs: int
    logical_bytes: int
    unique_bytes: int
    stored_bytes: int
    pack_bytes: int
    dedup_saved_bytes: int
    codec_saved_bytes: int
    delta_saved_bytes: int
    header_bytes: int
    overhead_bytes: int
    left_out: list[LeftOut]
    last_gc: LastGc | None = None


class FindingJson(Schema):
    """A problem: ``damage`` loses data or history, ``garbage`` only takes space."""

    severity: Literal["damage", "garbage"]
    key: str
    what: str
    needed_by: list[str]


class CheckJson(Schema):
    """The findings, and how much was checked; ``data_bytes`` is 0 without ``--read-data``.

    ``hot_bytes`` is 0 without ``--hot``.
    ``versions`` counts variants too, and those with equal content once.
    ``quarantined`` names packs that no tier has a good copy of: saves store their chunks anew.
    ``copies_read`` counts the copies of packs that were read in full, ``copies_left`` those that
    ``--subset`` or ``--max-time`` left for another time, of ``left_bytes`` together. ``down`` says
    why tiers could not be asked from some time on, by name.
    """

    damaged: bool
    findings: list[FindingJson]
    refs: int
    versions: int
    packs: int
    chunks: int
    data_bytes: int
    hot_bytes: int
    quarantined: list[str]
    copies_read: int
    copies_left: int
    left_bytes: int
    down: dict[str, str]


class DemoStep(Schema):
    """One save of the demo."""

    what: str
    ref: str
    logical_bytes: int
    new_bytes: int
    reused_bytes: int
    stored_bytes: int
    seconds: float


class DemoCodec(Schema):
    """The chunks of one dtype that were encoded by one codec."""

    version: str
    dtype: str
    codec: str
    chunks: int
    bytes: int
    stored_bytes: int


class DemoRead(Schema):
    """One lazy read, in bytes."""

    what: str
    bytes: int
    bytes_fetched: int
    model_bytes: int
    seconds: float


class DemoFile(File):
    """An exported file; ``identical`` says whether its SHA-256 is that of the source."""

    identical: bool


class Demo(Schema):
    """Everything that the demo measured; ``directory`` is null if it was removed."""

    directory: str | None
    steps: list[DemoStep]
    codecs: list[DemoCodec]
    reads: list[DemoRead]
    exported: list[DemoFile]
    rolled_back: AliasJson
    usage: Du


class VersionOutput(Schema):
    """Versions of tierstore and of Python."""

    tierstore: str
    python: str


class ErrorDetail(Schema):
    """``type`` is a class of ``tierstore.errors``, or ``UsageError``, ``Interrupted``, ``Bug``."""

    type: str
    message: str
    exit_code: int


class ErrorJson(Schema):
    """Printed as one line on stderr when a command with ``--json`` fails."""

    error: ErrorDetail
