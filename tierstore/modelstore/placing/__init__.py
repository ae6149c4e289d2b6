"""Where versions lie: plans of moves carried out, pins, warm-up."""

__all__ = ["hotpins", "moverlease", "packgraph", "placing", "snapshot", "warming"]
