"""Seeds that follow from what is evaluated, not from when or where."""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, policy_hash: str, fidelity: str) -> int:
    """A seed in [0, 2^31) from the run's seed, the policy's digest and the rung."""
    digest = hashlib.sha256(f"{run_seed}/{policy_hash}/{fidelity}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
