"""Policies of placement: pure, without I/O and without a clock."""

__all__ = ["base", "cost", "heat", "outlook", "plan", "policies", "scene"]
