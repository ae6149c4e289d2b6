"""Placement policies and plans: pure functions of what they are given, without I/O or a clock."""

__all__ = ["base", "cost", "forecast", "heat", "plan", "policies", "scene"]
