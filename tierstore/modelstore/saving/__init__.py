"""From a source to published bytes: chunks, deltas, frames, packs."""

__all__ = [
    "base_selection", "copier", "framing", "healing", "kinds", "packer", "reused_file", "source",
    "transaction", "writer",
]  # fmt: skip
