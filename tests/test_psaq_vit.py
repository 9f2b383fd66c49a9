"""PSAQ-ViT: attention found in networks of any library, its loss terms by hand, and images unlike noise."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model, make_tiny_transformer
from torch import nn
from torchvision.models import SwinTransformer

from dghlib.generators import attention, psaq_vit
from dghlib.generators.attended import NoAttention
from dghlib.generators.attention import RecordedAttention, open_attention
from dghlib.generators.deep_inversion import total_variation
from dghlib.generators.patch_similarity import BANDWIDTH, DENSITY_EPSILON
from dghlib.generators.psaq_vit import Config, generate, image_entropies, patches_seen, rate
from dghlib.models import FloatModel
from dghlib.storage.checkpoints import Checkpoint
from dghlib.synthesis.classes import labels_of


def _swin() -> nn.Module:
    torch.manual_seed(0)
    net = SwinTransformer([2, 2], 8, depths=[2, 2], num_heads=[2, 2], window_size=[2, 2], num_classes=5)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def _opened(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    open_attention(net)
    return net


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_opened_attention_gives_the_same_outputs_and_its_patches(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first).eval()
    tokens = torch.randn((3, 5, 8) if batch_first else (5, 3, 8), requires_grad=True)
    with RecordedAttention() as seen:
        opened = _opened(layer)(tokens)
    torch.testing.assert_close(opened, layer(tokens))
    assert [mixture.shape for mixture in seen.mixtures] == [(3, 2, 5, 4)]


def test_cross_attention_and_masked_attention_are_not_changed() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens, others, mask = torch.randn(3, 5, 8), torch.randn(3, 7, 8), torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(_opened(layer)(tokens, others, others)[0], layer(tokens, others, others)[0])
    masked = {"need_weights": False, "attn_mask": mask}
    torch.testing.assert_close(
        _opened(layer)(tokens, tokens, tokens, **masked)[0], layer(tokens, tokens, tokens, **masked)[0]
    )


def test_mixed_patches_match_the_definition() -> None:
    """The definition is softmax of the scaled products of queries and keys, times the values, for each head."""
    layer = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    tokens = torch.randn(1, 3, 4)
    with torch.no_grad(), RecordedAttention() as seen:
        _opened(layer)(tokens, tokens, tokens)
    query, key, value = (tokens[0] @ layer.in_proj_weight.T + layer.in_proj_bias).chunk(3, dim=1)
    for head in range(2):
        part = slice(2 * head, 2 * head + 2)
        weights = (query[:, part] @ key[:, part].T / math.sqrt(2)).softmax(1)
        torch.testing.assert_close(seen.mixtures[0][0, head], weights @ value[:, part])


def test_attention_written_as_operations_is_found_in_every_window() -> None:
    with torch.no_grad(), RecordedAttention() as seen:
        _swin()(torch.randn(3, 3, 8, 8))
    assert [mixture.shape for mixture in seen.mixtures] == [(12, 2, 4, 4)] * 2 + [(3, 2, 4, 8)] * 2


def test_products_without_a_softmax_are_not_attention() -> None:
    with RecordedAttention() as seen:
        torch.softmax(torch.randn(2, 4), 1)
        torch.randn(2, 3, 4, 4) @ torch.randn(2, 3, 4, 4)
    assert seen.mixtures == []


@pytest.mark.parametrize(
    ("tokens", "class_tokens", "patches"),
    [(17, None, 16), (16, None, 16), (18, None, 16), (21, None, 16), (7, 1, 6), (7, 0, 7)],
)
def test_tokens_before_the_patches_are_left_out(tokens: int, class_tokens: int | None, patches: int) -> None:
    mixture = torch.randn(2, 3, tokens, 4)
    (seen,) = patches_seen([mixture], class_tokens)
    torch.testing.assert_close(seen, mixture.mean(1)[:, tokens - patches :])


def test_attention_without_pairs_of_patches_is_left_out() -> None:
    assert patches_seen([torch.randn(2, 3, 1, 4), torch.randn(2, 3, 2, 4), torch.randn(2, 4, 4)], None) == []


def test_entropy_of_two_windows_by_hand() -> None:
    """2 windows of 2 patches, equal in one and orthogonal in the other: 6 cosines are 1, 2 cosines are 0."""
    alike, square = torch.tensor([[1.0, 0], [2, 0]]), torch.tensor([[1.0, 0], [0, 3]])
    entropy = image_entropies(torch.stack([alike, square]), num_images=1)
    height = 1 / (BANDWIDTH * math.sqrt(2 * math.pi))
    densities = [0.25 * height + DENSITY_EPSILON, *[DENSITY_EPSILON] * 8, 0.75 * height + DENSITY_EPSILON]
    terms = [-density * math.log(density) for density in densities]
    by_hand = sum((left + right) / 2 / 9 for left, right in pairwise(terms))
    torch.testing.assert_close(entropy, torch.tensor([by_hand]))


def test_the_learning_rate_restarts_in_the_second_half() -> None:
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[:500] == rates[500:]
    assert max(range(500), key=rates.__getitem__) == 100
    assert rates[499] < 1e-4


def test_images_move_further_in_the_second_half() -> None:
    """A single bright pixel shows where each image is: moved as far down as right, or mirrored."""
    loss = psaq_vit._Loss(nn.Identity(), Config(steps=400), torch.zeros(1), torch.Generator().manual_seed(0))
    image = torch.zeros(1, 1, 224, 224)
    image[..., 100, 100] = 1
    shifts: list[int] = []
    for _ in range(400):
        row, column = loss._jittered(image)[0, 0].nonzero()[0].tolist()
        assert row in (column, 223 - column)
        shifts.append(abs(row - 100))
        loss.calls += 1
    assert max(shifts[:200]) == 15
    assert max(shifts[200:]) == 30


@pytest.mark.parametrize("net", [make_tiny_transformer().net, _swin()])
def test_entropy_rises_and_images_are_classified_as_their_class(net: nn.Module) -> None:
    model = FloatModel(name="tiny", net=net, image_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    config = Config(num_images=4, steps=60, learning_rate=0.05)
    labels = labels_of("psaq_vit", config, 5)
    before, after = (
        psaq_vit._Loss(_opened(net), config, labels, torch.Generator().manual_seed(0))(images)
        for images in (torch.randn(4, 3, 8, 8), generate(model, config, progress=False))
    )
    assert sum(after.values()) < sum(before.values())
    assert after["entropy"] < before["entropy"]
    assert after["class"] < before["class"]


def test_the_target_of_variation_is_scaled_to_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small image is compared with 32 images of 224x224: the target scales with the root of the values."""
    monkeypatch.setattr(psaq_vit._Loss, "_jittered", lambda self, images: images)
    net, label, images = _opened(make_tiny_transformer().net), torch.tensor([0]), torch.randn(1, 3, 8, 8)
    loss = psaq_vit._Loss(net, Config(), label, torch.Generator())
    assert 2500 <= loss.variation <= 3000
    target = loss.variation * math.sqrt((8 * 8) / (32 * 224 * 224))
    expected = 0.05 * abs(total_variation(images).item() - target)
    assert loss(images)["TV"].item() == pytest.approx(expected)


def test_images_are_valid_pixels() -> None:
    images = generate(make_tiny_transformer(), Config(num_images=2, steps=3, learning_rate=5.0), progress=False)
    assert images.abs().max() <= 2 + 1e-6


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(NoAttention, match=r"tiny \(TinyNet\) has no attention between patches"):
        generate(make_tiny_model(), Config(num_images=2, steps=1), progress=False)


def test_more_class_tokens_than_tokens_leave_no_patches() -> None:
    with pytest.raises(NoAttention):
        generate(make_tiny_transformer(), Config(num_images=2, steps=1, class_tokens=16), progress=False)


@pytest.mark.parametrize("setting", [{"class_tokens": -1}, {"class_weight": -0.1}, {"learning_rate": math.nan}])
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        replace(Config(), **setting)


def test_damaged_weights_are_named() -> None:
    model = make_tiny_transformer()
    with torch.no_grad():
        model.net.get_parameter("heads.head.weight")[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"heads\.head\.weight"):
        generate(model, Config(num_images=2, steps=1), progress=False)


def test_the_attention_of_the_network_is_unchanged() -> None:
    model = make_tiny_transformer()
    generate(model, Config(num_images=2, steps=1), progress=False)
    assert not any(isinstance(module, attention.OpenAttention) for module in model.net.modules())


def test_a_resumed_run_continues_in_the_right_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psaq_vit, "JITTER", 0.5)  # shifts of 2, then 4, of 8 pixels
    model, config, file = make_tiny_transformer(), Config(num_images=2, steps=9), tmp_path / "run.checkpoint"
    whole = generate(model, config, progress=False)
    saves = 0

    def save_and_stop(self: Checkpoint, state: Callable[[], dict[str, Any]]) -> None:
        nonlocal saves
        saves += 1
        if saves == 6:
            self.save(state())
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save_when_due", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        generate(model, config, progress=False, checkpoint=file)
    assert torch.equal(generate(model, config, progress=False, checkpoint=file), whole)
