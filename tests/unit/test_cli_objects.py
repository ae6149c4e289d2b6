"""How commands print stored objects: short ids, some of many names, totals by kind."""

from __future__ import annotations

from tierstore.cli.kit.objects import by_kind, short_ids, some_of

ID = "0123456789abcdef" * 4


def test_ids_are_cut_and_nothing_else() -> None:
    said = f"damage: packs/01/{ID}: chunk b3:{ID} in pack {ID} (needed by m@1)"
    assert short_ids(said) == (
        "damage: packs/01/0123456789ab…: chunk b3:0123456789ab… in pack 0123456789ab… (needed by "
        "m@1)"
    )
    assert short_ids(f"moves/{ID}-2") == "moves/0123456789ab…-2"
    assert short_ids(f"{ID[:32]} {ID}0") == f"{ID[:32]} {ID}0", "no id of 64 digits"


def test_some_of_many_names() -> None:
    names = [f"m@{number}" for number in range(1, 10)]
    assert some_of(names[:6]) == "m@1, m@2, m@3, m@4, m@5, m@6"
    assert some_of(names) == "m@1, m@2, m@3, m@4, m@5 and 4 more"


def test_objects_are_counted_by_kind_the_most_first() -> None:
    keys = [f"versions/{ID}"] * 3 + ["refs/m/versions/000000/000000001"] * 2 + [f"packs/01/{ID}"]
    assert by_kind(keys) == "3 manifests, 2 entries of logs, 1 pack"
    assert by_kind([*keys, "leases/00", "moves/00", "pins/00", "layouts/00"]).endswith(
        "1 lease, 1 move, 1 pin, 1 layout"
    )
