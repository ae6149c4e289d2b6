"""What ``gc`` prints as JSON."""

from __future__ import annotations

from datetime import datetime

from tierstore.cli.schemas.core import Schema


class GcAmount(Schema):
    """Packs of one state, in one tier or for one reason in all tiers together.

    ``state`` is ``live``; ``chain``: below a patch that stays; ``base``: it holds bases of deltas
    alone; ``window``: of a version that can be undeleted; ``leased``: a reader holds it;
    ``waiting``: nothing needs it, and it is condemned after the grace; ``writing``: condemned,
    and a save that runs now may need it; ``down``: condemned, but a tier cannot be asked;
    ``condemned``: left to the next run; ``deleted``. ``why`` is null in a tier.
    """

    state: str
    why: str | None
    packs: int
    bytes: int


class GcTier(Schema):
    """One durable tier: what was freed in it, and what it holds now.

    With ``dry_run`` nothing was freed, and what would be is among what it holds as ``deleted``.
    ``kept_bytes`` were deleted, and the tier keeps them as older versions. ``refused`` says why it
    did not delete some packs, and ``error`` why it could not be asked; null if neither is so.
    """

    name: str
    freed_bytes: int
    kept_bytes: int
    holds: list[GcAmount]
    refused: str | None
    error: str | None


class Gc(Schema):
    """What garbage collection did, or with ``dry_run`` would do.

    ``deleted_bytes`` counts the copies in all tiers. ``reasons`` are those of all packs that are
    deleted or will be: why they went, or what they wait for. ``lacking`` names what would be healed
    first, with ``dry_run``. ``repacked_packs`` had too much waste: what is needed of them went into
    new packs, of ``rewritten_bytes`` in all tiers. ``waste_bytes`` is what nothing needed in packs
    that stay, before they were repacked, counted in one tier. ``stopped`` says what ended it before
    all was done, null if nothing did.
    """

    dry_run: bool
    enabled: bool
    deleted_packs: int
    deleted_bytes: int
    condemned_packs: int
    healed: int
    repacked_packs: int
    waste_bytes: int
    rewritten_bytes: int
    lacking: list[str]
    stopped: str | None
    tiers: list[GcTier]
    reasons: list[GcAmount]


class GcShare(Schema):
    """Bytes of a tier that have one reason.

    ``kind`` is a state of packs as in ``GcAmount``, where ``deleted`` is what the next run deletes;
    ``waste``: frames that nothing needs in packs that stay; ``metadata``; ``new``: packs that came
    meanwhile; or ``foreign``: not of tierstore. ``unpaid_gb_months`` is what the storage still
    charges for when they are deleted now, in GB times months, and ``fee`` the same in the currency
    of the tier's prices, as decimal text; null where it has none.
    """

    kind: str
    why: str
    objects: int
    bytes: int
    unpaid_gb_months: str
    fee: str | None


class GcTierExplained(Schema):
    """All that a durable tier holds, by reason; ``error`` says why it could not be asked."""

    name: str
    bytes: int
    shares: list[GcShare]
    error: str | None


class GcExplained(Schema):
    """Why every byte of every durable tier is there; of a tier they add up to ``bytes``.

    ``enabled`` is false where the store does not allow removal and collection yet.
    """

    enabled: bool
    tiers: list[GcTierExplained]


class GcWriter(Schema):
    """Who wrote to the store lately, and with what; the others null for a save that runs now."""

    who: str
    tool: str | None
    last: datetime | None


class GcMoved(Schema):
    """This home deletes in these tiers from now on, and no other one does."""

    url: str
    tiers: list[str]


class GcEnabled(Schema):
    """The store allows removal and garbage collection from now on; who wrote to it lately."""

    url: str
    writers: list[GcWriter]
