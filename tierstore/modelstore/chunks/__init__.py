"""From packs to verified plain bytes: read plans, fetching, decoding."""

__all__ = ["decode", "fetch", "packs", "plan", "reader", "recent", "sharing"]
