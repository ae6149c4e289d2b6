"""Pins: what is kept, until when, and what a damaged pin does."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from tierstore.blobs.memory import MemoryStore
from tierstore.errors import NotFound, UsageError
from tierstore.format.tiers import Role, pin_key
from tierstore.ids import Digest
from tierstore.modelstore.home.pins import Pins

ONE, TWO = Digest(b"\x01" * 32), Digest(b"\x02" * 32)


def later(**by: int) -> datetime:
    return datetime.now(UTC) + timedelta(**by)


def test_pins_come_back_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = Pins(MemoryStore())
    end = later(hours=1)
    pins.add(ONE, "m@1", ["warm", "hot", "hot"], end)
    pins.add(TWO, "m@2", ["warm"])
    first, second = pins.active()
    assert (first.version, first.ref, first.roles, first.until) == (
        ONE,
        "m@1",
        ("hot", "warm"),
        end,
    )
    assert (second.version, second.until) == (TWO, None)
    monkeypatch.setattr(time, "time", lambda: end.timestamp() + 1)
    assert [pin.version for pin in pins.active()] == [TWO]


def test_a_pin_is_replaced_and_removed() -> None:
    pins = Pins(MemoryStore())
    pins.add(ONE, "m@1", ["hot"])
    pins.add(ONE, "m@prod", ["warm"])
    assert [(pin.ref, pin.roles) for pin in pins.active()] == [("m@prod", ("warm",))]
    pins.remove(ONE)
    assert pins.active() == []
    with pytest.raises(NotFound):
        pins.remove(ONE)


@pytest.mark.parametrize(("roles", "hours"), [([], 1), (["cold"], 1), (["hot"], -1)])
def test_what_makes_no_sense_is_refused(roles: list[Role], hours: int) -> None:
    pins = Pins(MemoryStore())
    with pytest.raises(UsageError):
        pins.add(ONE, "m@1", roles, later(hours=hours))
    assert pins.active() == []


def test_a_damaged_pin_still_holds(caplog: pytest.LogCaptureFixture) -> None:
    home = MemoryStore()
    home.put(pin_key(ONE.hex), b"zeros after a power loss")
    home.put("pins/not-a-digest", b"?")
    (pin,) = Pins(home).active()
    assert (pin.version, pin.roles, pin.until) == (ONE, ("hot", "warm"), None)
    assert "stays pinned" in caplog.text
