"""Measures the frames of a store."""

from __future__ import annotations

import logging

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import LAYOUTS
from tierstore.format.layout import parse_layout
from tierstore.ids import Digest
from tierstore.modelstore.home.home import Home

_log = logging.getLogger("tierstore.frames")


def frame_sizes(home: Home) -> list[int]:
    """Return the size in bytes of every frame that a layout names, each once; reads all layouts."""
    sizes: dict[tuple[bytes, int], int] = {}
    for info in home.blobs.list(LAYOUTS):
        try:
            digest = Digest.from_hex(info.key.removeprefix(LAYOUTS))
            table = parse_layout(home.blobs.get(info.key), digest, f"layout {info.key}")
        except (Damaged, NotFound, UnsupportedFormat) as error:
            _log.warning("%s; its frames are not counted", error)
            continue
        sizes.update(((place.pack, place.offset), place.frame_bytes) for place in table)
    return list(sizes.values())
