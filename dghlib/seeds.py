"""One seed for all random sources: independent streams derived from a seed and a purpose.

Nothing in dghlib draws from torch's global generator, so a caller's own randomness is never disturbed and a stream
does not depend on what was drawn before it.
"""

import hashlib

import torch


def derived_seed(seed: int, *purpose: object) -> int:
    """Return a 63-bit seed that depends on `seed` and on what it is for, e.g. ("dgh", "images")."""
    digest = hashlib.sha256(repr((int(seed), *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator for one purpose.

    It lives on the CPU whatever the device, so that the same seed draws the same numbers on every device.
    """
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
