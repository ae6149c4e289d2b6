"""Placement policies compared on access traces: streams, peers, the offline reference, replay."""
