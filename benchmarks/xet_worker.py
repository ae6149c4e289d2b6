"""Runs in hf_xet's own environment: uploads files to a local store and says what that took.

Arguments: the store's directory, then one JSON list of paths for each commit. Prints one line of
JSON for each commit: bytes of the new xorbs (compressed chunks) and of the shards that describe
them, by the files that appeared in the store, and the chunks that were new.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hf_xet


def held(root: Path) -> dict[str, int]:
    """Bytes of everything that such a store needs to give files back, by what it is."""
    kinds = {"xorb_bytes": "xet/xorbs/xorbs/*", "shard_bytes": "xet/xorbs/shards/*.mdb"}
    return {
        kind: sum(p.stat().st_size for p in root.glob(pattern) if p.suffix != ".tagset")
        for kind, pattern in kinds.items()
    }


def main() -> None:
    root = Path(sys.argv[1])
    session = hf_xet.XetSession()
    before = held(root)
    for group in sys.argv[2:]:
        commit = session.new_upload_commit(endpoint=f"local://{root}")
        for path in json.loads(group):
            commit.start_upload_file(path)
        report = commit.wait_to_finish()
        after = held(root)
        new = {kind: after[kind] - before[kind] for kind in after}
        new["new_chunks"] = report.dedup_metrics.new_chunks
        new["stored"] = new["xorb_bytes"] + new["shard_bytes"]
        print(json.dumps(new), flush=True)
        before = after


if __name__ == "__main__":
    main()
