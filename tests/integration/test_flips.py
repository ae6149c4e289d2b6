"""Single bits that flip, wherever a store lies: none is returned as data.

``python -m tests.flips`` does it a hundred thousand times, with servers; ``make soak`` runs that.
"""

from __future__ import annotations

from pathlib import Path

from tests.flips.campaign import Campaign
from tests.flips.uploads import flip_uploads
from tests.flips.world import built

KINDS = {
    "condemned", "config.json", "folds", "gc", "heat", "identity", "index", "layouts", "leases",
    "movers", "moves", "packs", "pins", "quarantine", "refs alias", "refs alias HEAD",
    "refs variant", "refs variant HEAD", "refs versions", "refs versions HEAD", "reports", "tiers",
    "versions",
}  # fmt: skip


def test_no_flipped_bit_is_returned(tmp_path: Path) -> None:
    world = built(tmp_path / "world")
    with world.keep:
        campaign = Campaign(world, seed=1)
        assert {kind for place, kind in campaign.kinds if place == "home"} == KINDS
        tally = campaign.run(5 * len(campaign.kinds))
    flip_uploads(tmp_path, 3, 1, tally)
    assert tally.failures == []
    assert tally.total("refused") > 10
    assert tally.counts["gateway spool", "uploads", "refused"] == 3
    assert tally.counts["home", "config.json", "refused"] == 5
    for place in ("hot first", "hot always", "hot before a start"):
        found = [tally.counts[place, "hot files", outcome] for outcome in ("not needed", "healed")]
        assert sum(found) == 5
    assert tally.total("healed") > 3


def test_the_campaign_sees_what_is_not_verified(tmp_path: Path) -> None:
    """A hot tier that trusts its files returns flipped bits: else it would prove nothing."""
    world = built(tmp_path)
    with world.keep:
        campaign = Campaign(world, seed=2)
        campaign.keep_targets("hot boot")
        tally = campaign.run(40)
    assert tally.failures == []
    assert tally.total("changed after its check") > 0
    assert tally.ways["export", "changed after its check"] == 0
