"""Cards of networks and data sets state facts."""

import pytest

from dghlib import models
from dghlib.experiments.profiles import PROFILES
from dghlib.showing import cards
from dghlib.storage.assets import MissingAsset


@pytest.mark.parametrize("name", cards.CARDS)
def test_a_card_matches_its_network(name: str) -> None:
    try:
        model = models.load(name)
    except (MissingAsset, ImportError):
        pytest.skip(f"{name} is not on this machine")
    card = cards.CARDS[name]
    assert sum(parameter.numel() for parameter in model.net.parameters()) == card.parameters
    assert model.image_shape == card.images
    if "batch norms" in card.architecture:
        norms = sum("BatchNorm" in type(module).__name__ for module in model.net.modules())
        assert f" {norms} batch norms" in card.architecture


def test_every_network_of_a_page_and_every_data_set_has_a_card() -> None:
    record = {
        "inputs": {
            "profile": "shapes",
            "model": {"name": "shapes_residual"},
            "test_images": 96,
            "quantizer": {"method": "float"},
        },
        "outputs": {"top1": 88.5, "map": 0.0},
    }
    table = cards.networks([record])
    assert table.loc["shapes_residual", "float, %"] == "88.50"
    assert table.loc["cifar10_resnet20", "licence"] == "BSD-2-Clause"
    small = {
        name for profile in PROFILES.values() for name in profile.models if profile.name not in ("imagenet", "coco")
    }
    assert set(table.index) == small
    assert list(cards.data_sets().index) == list(PROFILES)
