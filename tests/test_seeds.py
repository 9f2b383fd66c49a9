"""Seeds: streams depend on the seed and on every part of what they are for, and stay what they are."""

import torch

from dghlib.seeds import derived_seed, stream


def test_every_part_of_a_purpose_changes_the_seed() -> None:
    seeds = {
        derived_seed(0, "a", "b", 0),
        derived_seed(1, "a", "b", 0),
        derived_seed(0, "c", "b", 0),
        derived_seed(0, "a", "d", 0),
        derived_seed(0, "a", "b", 1),
        derived_seed(0, "a", "b"),
        derived_seed(0, "ab"),
    }
    assert len(seeds) == 7


def test_seeds_stay_what_they_are() -> None:
    # Changing this makes other images of every seed, under the names of those that there are.
    assert derived_seed(7, "dgh", "images", 3) == 3627426427004924688
    assert torch.rand(1, generator=stream(7, "dgh")).item() == torch.rand(1, generator=stream(7, "dgh")).item()


def test_the_caller_is_not_disturbed() -> None:
    state = torch.get_rng_state()
    torch.rand(3, generator=stream(0, "test"))
    assert torch.equal(state, torch.get_rng_state())
