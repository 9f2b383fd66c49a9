"""Schedules of the generators, compared with rates by hand."""

import pytest

from dghlib.generators.schedules import PlateauWithReset, in_proportion


def test_the_rate_halves_after_patience_is_exceeded_and_the_best_loss_is_reset() -> None:
    schedule = PlateauWithReset(8.0, patience=2)
    losses = [1.0, 0.5, 0.5, 0.5, 0.5, 0.9, 0.9, 0.9, 0.9]
    rates = []
    for loss in losses:
        schedule.step(loss)
        rates.append(schedule.learning_rate)
    # 0.5 is better once; the third step without a better loss halves the rate. Then 0.9 is the first, so the best.
    assert rates == [8, 8, 8, 8, 4, 4, 4, 4, 2]


@pytest.mark.parametrize(("loss", "counts"), [(0.9999, False), (0.9998, True)])
def test_a_better_loss_is_smaller_by_a_relative_threshold(loss: float, counts: bool) -> None:
    schedule = PlateauWithReset(8.0, patience=1)
    schedule.step(1.0)
    schedule.step(loss)
    assert (schedule.bad_steps == 0) == counts


def test_negative_losses_improve_as_they_fall_and_the_rate_has_a_minimum() -> None:
    schedule = PlateauWithReset(1.0, patience=0, minimum=0.3)
    for loss in (-1.0, -2.0, -3.0):
        schedule.step(loss)
    assert schedule.learning_rate == 1
    for loss in (-2.9, -2.9, -2.9, -2.9, -2.9, -2.9):
        schedule.step(loss)
    assert schedule.learning_rate == 0.3


def test_a_restored_schedule_continues_where_it_was() -> None:
    first, second = PlateauWithReset(8.0, patience=2), PlateauWithReset(1.0, patience=2)
    for loss in (1.0, 1.0, 1.0):
        first.step(loss)
    second.load_state_dict(first.state_dict())
    second.step(1.0)
    assert second.learning_rate == 4


def test_stages_are_proportional_and_at_least_one_step() -> None:
    assert [in_proportion(100, steps, 500) for steps in (500, 250, 10, 1)] == [100, 50, 2, 1]
