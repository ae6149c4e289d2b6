"""Repair: what is damaged or lost is put back from what is left, or said to be lost."""

__all__ = ["objects", "repairing", "report", "scrub", "start"]
