"""The rate of short runs: the best is found, rates that diverge are passed over, and low ones are not tried in vain."""

import math
from collections.abc import Callable

import pytest

from dghlib.quantizers.learning_rates import RATES, best_rate, largest_stable_rate


def test_the_rate_of_the_smallest_loss_is_found_and_rates_far_below_are_not_tried() -> None:
    tried = []

    def loss_after(rate: float) -> float:
        tried.append(rate)
        if rate > 0.1:
            raise FloatingPointError
        return abs(math.log10(rate) + 2)

    assert best_rate(loss_after) == pytest.approx(0.01)
    assert tried == list(RATES[: RATES.index(0.01) + 3])


def test_a_single_worse_rate_does_not_end_the_search() -> None:
    losses = dict.fromkeys(RATES, 1.0) | {RATES[0]: 0.8, RATES[1]: 0.9, RATES[2]: 0.5}
    assert best_rate(losses.__getitem__) == RATES[2]


def test_the_largest_stable_rate_is_found_whatever_its_loss() -> None:
    def loss_after(rate: float) -> float:
        if rate > 0.02:
            raise FloatingPointError
        return rate

    assert largest_stable_rate(loss_after) == pytest.approx(0.01)


@pytest.mark.parametrize("find", [best_rate, largest_stable_rate])
def test_a_run_that_always_diverges_is_an_error(find: Callable[[Callable[[float], float]], float]) -> None:
    def loss_after(rate: float) -> float:
        raise FloatingPointError

    with pytest.raises(FloatingPointError, match=r"diverges at all learning rates from 1 to 1e-07"):
        find(loss_after)
