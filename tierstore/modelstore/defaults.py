"""Defaults that signatures of the store show; the rooms that use them are imported when called."""

from __future__ import annotations

COSTS = 1.5
"""The most bytes that reading deltas may fetch, per byte of the standalone frames for them."""

HOT = "hot"
"""The name by which this node's own hot tier is always found."""
