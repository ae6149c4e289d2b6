"""Flips bits of files that wait in the gateway's folder of uploads for their commit."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from safetensors.numpy import save

import tierstore
from tests.flips.campaign import Failure, Outcome, Tally
from tests.flips.world import tensors
from tierstore.errors import TierstoreError
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.commits import Committer, parse_commit
from tierstore.serving.hub.repos import Repos
from tierstore.serving.hub.rights import Caller
from tierstore.serving.hub.spool import UploadSpool

_PLACE = ("gateway spool", "uploads")


def flip_uploads(root: Path, flips: int, seed: int, tally: Tally) -> None:
    """Commit an upload of which one bit was flipped, ``flips`` times, and count what came of it."""
    chosen = random.Random(seed)
    data = save(tensors(1))
    oid = hashlib.sha256(data).hexdigest()
    value = {"path": "model.safetensors", "algo": "sha256", "oid": oid, "size": len(data)}
    lines = [{"key": "header", "value": {"summary": "s"}}, {"key": "lfsFile", "value": value}]
    commit = parse_commit("\n".join(map(json.dumps, lines)).encode())
    with tierstore.init(root / "uploads") as store:
        spool = UploadSpool(root / "spool")
        committer = Committer(store, spool)
        repo = Repos(store).writable("m", Caller(None, (), ("m",)))
        for _ in range(flips):
            bit = chosen.randrange(8 * len(data))
            path = spool.keep("m", [data])
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            outcome: Outcome = "refused"
            said = ""
            try:
                version = committer.commit(repo, "main", commit)
            except (HubError, TierstoreError) as error:
                said = str(error)
            except Exception as error:
                outcome, said = "CRASHED", repr(error)
            else:
                stored = store.load(version).read_file("model.safetensors")
                outcome = "not needed" if stored == data else "WRONG"
            tally.counts[*_PLACE, outcome] += 1
            tally.ways["commit", outcome] += 1
            if outcome in ("WRONG", "CRASHED"):
                tally.failures.append(Failure(_PLACE[0], oid, bit, "commit", outcome, said))
