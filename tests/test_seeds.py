"""Seeds: streams depend on the seed and on every part of their purpose, and never change."""

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


def test_seeds_never_change() -> None:
    # A change would give other images for every seed, under the names of existing ones.
    assert derived_seed(7, "dgh", "images", 3) == 3627426427004924688
    assert torch.rand(1, generator=stream(7, "dgh")).item() == torch.rand(1, generator=stream(7, "dgh")).item()


def test_the_callers_random_state_is_unchanged() -> None:
    state = torch.get_rng_state()
    torch.rand(3, generator=stream(0, "test"))
    assert torch.equal(state, torch.get_rng_state())
