"""From a source to published bytes: chunks, deltas, frames, packs."""

__all__ = ["basis", "framing", "kept", "packer", "source", "transaction", "writer"]
