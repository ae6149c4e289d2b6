"""The footer of a pack is read from any tier that has a good one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.kit import equal, tensors
from tests.integration.test_tiers import Tiered
from tierstore.errors import Damaged
from tierstore.format.keys import layout_key, pack_key
from tierstore.modelstore.home.footers import read_footer


@pytest.fixture
def tiered(tmp_path: Path) -> Iterator[Tiered]:
    made = Tiered(tmp_path)
    yield made
    for store in made.opened:
        store.close()


@pytest.mark.parametrize("at", [-1, -100])
def test_a_layout_is_made_by_the_footer_of_another_tier(tiered: Tiered, at: int) -> None:
    store = tiered.open()
    digest = store.save("m", tensors(1)).digest
    tiered.copy("warm", "cold")
    tiered.spoil("warm", at=at)
    home = tiered.stores["home"].inner
    layout = bytearray(home.get(layout_key(digest)))
    layout[-1] ^= 1
    home.put(layout_key(digest), layout)
    report = store.repair()
    assert report.is_whole, report
    assert sorted(one.outcome for one in report.objects) == ["repaired", "repaired"]
    assert bytes(home.get(layout_key(digest))) != bytes(layout)
    equal(store.load("m").load(), tensors(1))
    assert store.repair().objects == []


def test_a_footer_that_no_tier_has_whole_is_damaged(tiered: Tiered) -> None:
    store = tiered.open()
    digest = store.save("m", tensors(1)).digest
    tiered.copy("warm", "cold")
    [key] = [pack_key(pack) for pack in store.placement.packs_of(digest)]
    size = tiered.stores["warm"].inner.info(key).size
    for name in ("warm", "cold"):
        tiered.spoil(name, at=-1)
        with pytest.raises(Damaged, match=key):
            read_footer(tiered.stores[name], key, size)
        if name == "warm":
            assert read_footer(store._parts.home.packs, key, size)[0].pack_id.hex() in key
    with pytest.raises(Damaged, match=key):
        read_footer(store._parts.home.packs, key, size)
