"""A learning rate from short runs: networks differ by factors of 30, so no constant suits all.

Source of the idea to run a network for some steps at several rates: L. N. Smith, "Cyclical Learning Rates for Training
Neural Networks", WACV 2017. There the rate rises within one run; here each rate has a run of its own, from the same
start, with its schedule.
"""

import math
from collections.abc import Callable, Iterator

from tqdm import tqdm

# From the highest: most that are too high diverge within 5 steps.
RATES = tuple(10 ** (power / 2) for power in range(0, -15, -1))
_WORSE = 2  # rates in sequence after which lower ones are not tried


def best_rate(loss_after: Callable[[float], float]) -> float:
    """Return the rate of the smallest loss; lower ones are not tried after several in sequence that are worse.

    Args:
        loss_after: returns the loss after a short run at a rate, or raises FloatingPointError if the run diverges.

    Raises:
        FloatingPointError: the run diverges at all rates.
    """
    best, worse = (math.inf, 0.0), 0
    for rate, loss in _stable(loss_after):
        worse = 0 if loss < best[0] else worse + 1
        best = min(best, (loss, rate))
        if worse == _WORSE:
            break
    return best[1]


def largest_stable_rate(loss_after: Callable[[float], float]) -> float:
    """Return the largest rate at which a short run does not diverge; for the rest see `best_rate`."""
    return next(_stable(loss_after))[0]


def _stable(loss_after: Callable[[float], float]) -> Iterator[tuple[float, float]]:
    """Yield the rates at which a short run does not diverge, from the highest, each with the loss at its end."""
    found = False
    for rate in tqdm(RATES, desc="learning rates", unit="rate", leave=False, delay=3):
        try:
            loss = loss_after(rate)
        except FloatingPointError:
            continue
        found = True
        yield rate, loss
    if not found:
        raise FloatingPointError(
            f"the student diverges at all learning rates from {RATES[0]:.2g} to {RATES[-1]:.2g}: the images may not "
            "suit the network, or its outputs may be far too large"
        )
