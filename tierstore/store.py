"""The store as users have it: with administration and lossy variants, which build on it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tierstore import wiring
from tierstore.format.chunking import DEFAULT_CHUNK
from tierstore.format.tiers import TierSpec
from tierstore.modelstore import store as modelstore
from tierstore.modelstore.version import Version
from tierstore.progress import Progress

if TYPE_CHECKING:
    from tierstore.admin.admin import Admin
    from tierstore.copying.report import CopiedVersion, Synced
    from tierstore.modelstore.reclaim.purge.purging import Purges
    from tierstore.modelstore.reclaim.purge.receipt import PurgeReceipt

__all__ = ["Store", "init_store", "open_store"]


class Store(modelstore.Store):
    """A store of models, as ``tierstore.init`` and ``tierstore.open`` give it.

    Thread-safe, and a context manager that closes it. Pickled, it is what opens the store again by
    its URL; a process opens a store once for all that is unpickled. A reference names a version:

    * ``ranker`` is the newest version of a model, ``ranker@12`` its twelfth;
    * ``ranker@prod`` is the version that the alias ``prod`` points to, on this node;
    * ``ranker@b3:59c857c3`` is the version whose digest begins so (at least 8 hex digits);
    * ``ranker@12+int8-row`` is a lossy variant of version 12;
    * ``ranker@release:search`` is the version that the release ``search`` names.

    Wherever a reference is taken, a ``Version`` is taken as well.

    Examples:
        >>> with tierstore.init("store") as store:
        ...     version = store.save("ranker", {"bias": np.zeros(3, np.float32)}, alias="prod")
        ...     print(version, store.load("ranker@prod")["bias"])
        ranker@1 [0. 0. 0.]
    """

    @property
    def admin(self) -> Admin:
        """Administration: tiers, what they hold and serve, lineage, and what is wrong."""
        from tierstore.admin.admin import Admin

        return self._parts.once("admin", lambda: Admin(self))

    def purge(
        self, *refs: str | Version, force: bool = False, message: str | None = None
    ) -> list[PurgeReceipt]:
        """Remove versions for good, and their bytes from everywhere, with a receipt for each.

        There is no window: what nothing else needs is deleted at once from every durable tier, with
        the manifests; from the hot tiers of this node, and those that nodes share. Agents do the
        same on their nodes, and acknowledge it. What cannot be deleted yet is named in the receipt:
        agents go on with it, and so does ``purges.run``, or this, called again. Versions that were
        removed can be purged, too.

        Args:
            refs: References to the versions. Variants go with them.
            force: Whether the newest version of a model may go, too.
            message: Why; kept in the log and in the receipt. ``None`` for no message.

        Returns:
            For each version what was deleted, what is left and why, who shares chunks, and which
            nodes are outstanding. ``purges.receipt`` returns it again, as it is then.

        Raises:
            UsageError: The store does not allow removal yet, or a variant was named alone.
            NotFound: There is no such version.
            Conflict: A version is needed, and the message says by whom; or it is the newest.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.reclaim.enable(wait_s=0)
            >>> for value in (1.0, 2.0):
            ...     _ = store.save("ranker", {"w": np.full(3, value, np.float32)}, base=None)
            >>> [receipt] = store.purge("ranker@1", message="request 7")
            >>> receipt.is_done, receipt.left, [tier.packs for tier in receipt.tiers]
            (True, [], [1])
        """
        return self.purges.begin(refs, force=force, message=message)

    @property
    def purges(self) -> Purges:
        """Purges: their receipts, and going on with those that are not over."""
        from tierstore.admin.purges import purges_of

        return self._parts.once("purges", lambda: purges_of(self))

    def derive(
        self,
        ref: str | Version,
        parameters: Mapping[str, str],
        *,
        keep: str | None = None,
        name: str | None = None,
        max_error: float | None = None,
        message: str | None = None,
        progress: Progress | bool | None = None,
    ) -> Version:
        """Make a lossy variant of a version and publish it beside that.

        A variant is loaded where it is asked for by its name, or where a node's profile prefers it,
        and never otherwise.

        Args:
            ref: A reference to the version.
            parameters: The method: one of ``cast`` (``bf16``, ``f16``, ``f32``), ``int8`` (``row``,
                ``channel``), ``fp8`` (``e4m3``), ``prune`` (``magnitude:0.5``, ``2:4``) and
                ``low-rank`` (``energy:0.99``, ``rank:64``). Tensors are taken in blocks of rows,
                and the variant waits in the node's cache until it is saved; only ``magnitude`` and
                ``low-rank`` hold a tensor as a whole.
            keep: A regular expression; tensors whose names it finds are left as they are. By
                default nothing, or norms, embeddings and heads for the methods of linear layers.
            name: The variant's name; by default the method's label, such as ``int8-row``.
            max_error: The largest relative L2 error of the whole model that is published: of all
                its float tensors as if they were one, those that are kept included.
            message: Why; kept in the log. ``None`` for no message.
            progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that
                is called with the bytes done and the bytes in all.

        Returns:
            The variant; its reference is ``model@number+name``.

        Raises:
            NotFound: There is no such version.
            UsageError: The method, ``keep`` or ``name`` make no sense, or no tensor is
                approximated.
            SourceError: The error is above ``max_error``; nothing is published.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((8, 8), np.float32)})
            >>> print(store.derive("ranker", {"int8": "row"}, max_error=0.01))
            ranker@1+int8-row
            >>> store.load("ranker@1+int8-row", dequantize=True)["w"].dtype
            dtype('float32')
        """
        from tierstore.variants.derive import derive

        return derive(
            self, ref, parameters, keep=keep, name=name, max_error=max_error, message=message,
            progress=progress,
        )  # fmt: skip

    def copy(
        self,
        ref: str | Version,
        to: Store,
        *,
        model: str | None = None,
        history: bool = False,
        progress: Progress | bool | None = None,
    ) -> list[CopiedVersion]:
        """Copy a version to another store: its manifest and what that store lacks of its chunks.

        Frames are verified and stored as they are, so that nothing is encoded again, and the digest
        stays the same. What a patch lies on comes along, variants go with their version, and a
        release with its members. Where the model has this content already, what that store has lost
        of it is put back, and nothing else is written. Else the version gets the next number of the
        model there: its own, if it is the next one.

        A copy that was stopped goes on where it was when it is started again. Both stores may be
        written to and collected meanwhile.

        Args:
            ref: A reference to the version, or to a release.
            to: The store that it comes to.
            model: The model's name there; by default the same.
            history: Whether entries keep their times, and who wrote them; else it is now, and us.
            progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that
                is called with the bytes done and the bytes in all, of one version at a time.

        Returns:
            What came of the version and of each of its variants; before a release of its members.

        Raises:
            UsageError: A variant was named alone, or ``model`` was given for a release.
            NotFound: There is no such version, or a part of it is missing; nothing was published.
            Damaged: A part of the version is damaged, and the message says which; likewise.
            Conflict: The content was purged there, or the name is a release's there.

        Examples:
            >>> store, backup = tierstore.init("store"), tierstore.init("backup")
            >>> version = store.save("ranker", {"w": np.ones(3, np.float32)})
            >>> [copied] = store.copy("ranker", backup)
            >>> str(copied.version), copied.version.digest == version.digest
            ('ranker@1', True)
        """
        from tierstore.copying.copying import copy_version

        return copy_version(self, ref, to, model=model, history=history, progress=progress)

    def sync(
        self,
        to: Store,
        *,
        models: Sequence[str] = (),
        versions: str | None = None,
        aliases: bool = False,
        history: bool = False,
        delete: bool = False,
        dry_run: bool = False,
        progress: Progress | bool | None = None,
    ) -> Synced:
        """Bring what this store has to another one, as ``copy`` does: a backup, or a move.

        The versions of each model come in order, each with its variants; then releases. What is
        there already costs nothing but a look at the logs. What was removed here is not copied, and
        what was removed or purged there stays so. A version that is older than one that is there is
        left out: it would be the newest. One that cannot be read ends nothing but its own copy.

        Args:
            to: The store that it comes to.
            models: Globs of the names of models and releases; all by default. The members of a
                release come in any case.
            versions: Which versions of each model: numbers and ranges such as ``12``, ``5-20``,
                ``30-`` or ``last:3``, with commas between; all by default.
            aliases: Whether aliases are set there as they are here.
            history: Whether entries keep their times, and who wrote them; else it is now, and us.
            delete: Whether versions of these models that this store does not have are removed
                there, as by ``remove``, and with ``aliases`` aliases that it does not have.
            dry_run: Whether nothing is changed.
            progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that
                is called with the bytes done and the bytes in all, of one version at a time.

        Returns:
            What came of each version, alias and removal; ``failed`` says what failed, and why.

        Raises:
            UsageError: It is the same store, ``versions`` makes no sense, or ``delete`` and the
                other store does not allow removal yet.
            NotFound: ``models`` name none.
            BackendError: A storage failed. Started again, it goes on where it was.

        Examples:
            >>> store, backup = tierstore.init("store"), tierstore.init("backup")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)}, alias="prod")
            >>> report = store.sync(backup, aliases=True)
            >>> [str(one.version) for one in report.of("copied")], report.failed
            (['ranker@1'], [])
            >>> backup.load("ranker@prod")["w"]
            array([1., 1., 1.], dtype=float32)
            >>> store.sync(backup).sent_bytes
            0
        """
        from tierstore.copying.sync import Wanted, sync_stores

        wanted = Wanted(models, versions, aliases, history, delete, dry_run)
        return sync_stores(self, to, wanted, progress)


def init_store(
    url: str | os.PathLike[str] | None = None,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    tiers: Sequence[TierSpec] = (),
) -> Store:
    """Make an empty store and open it.

    Args:
        url: A directory, which is made if it is missing, or a URL such as ``s3://bucket/prefix``;
            by default the one that ``TIERSTORE_STORE`` or the node's file names.
        chunk_size: Size of chunks in bytes, a power of two from 1 to 16 MiB; it never changes.
        tiers: Tiers beside home. Each is tried first, and nothing is made if one does not work.

    Raises:
        ConfigError: A tier is invalid.
        Conflict: There is a store already, or a tier belongs to another store.
        BackendError: The storage lacks what a store needs, or a tier cannot be used.

    Examples:
        >>> store = tierstore.init("store")
        >>> store
        <Store file:///.../store>
        >>> store.models()
        []
    """
    return wiring.init_as(Store, url, chunk_size=chunk_size, tiers=tiers)


def open_store(url: str | os.PathLike[str] | None = None) -> Store:
    """Open a store; see ``tierstore.open``."""
    return wiring.open_as(Store, url)
