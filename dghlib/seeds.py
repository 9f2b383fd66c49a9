"""A single seed for all random sources: independent streams derived from a seed and a purpose.

Nothing in dghlib draws from torch's global generator. The caller's own randomness is therefore never disturbed, and a
stream does not depend on earlier draws.
"""

import hashlib

import torch


def derived_seed(seed: int, *purpose: object) -> int:
    """Return a 63-bit seed that depends on `seed` and on its purpose, e.g. ("dgh", "images")."""
    digest = hashlib.sha256(repr((int(seed), *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator for a purpose.

    It is on the CPU for every device, so that the same seed draws the same numbers on every device.
    """
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
