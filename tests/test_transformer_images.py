"""MimiQ's similarity of heads by hand, and layer norms in place of batch norms."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import make_tiny_transformer
from torch import Tensor, nn
from torch.nn import functional as F

from dghlib.generators import dgh_vit, mimiq
from dghlib.generators.attention import RecordedScores, open_attention
from dghlib.generators.deep_inversion import total_variation
from dghlib.models import FloatModel
from dghlib.running.batchnorm import NoBatchNorm, stored_statistics, working_copy


def test_similarity_of_heads_is_structural_similarity() -> None:
    """Maps (0, 1, 0.5) and (0, 1, 0): means 0.5 and 1/3, variances 1/6 and 2/9, covariance 1/6."""
    scores = torch.tensor([[[[0.0, 4.0, 2.0]], [[-3.0, 7.0, -3.0]], [[8.0, 0.0, 4.0]]]])
    c1, c2 = 1e-4, 9e-4
    expected = (2 / 6 + c1) / (1 / 4 + 1 / 9 + c1) * (2 / 6 + c2) / (1 / 6 + 2 / 9 + c2)
    alike = mimiq.head_similarity(scores)
    assert alike.shape == (1, 3, 1)
    assert alike[0, 0, 0] == pytest.approx(expected, rel=1e-4)
    assert alike[0, 1, 0] == pytest.approx((-2 / 6 + c2) / (2 / 6 + c2), rel=1e-4)  # a map and its negative


def test_heads_with_zero_scores_give_no_nan() -> None:
    scores = torch.zeros(1, 2, 4, 4, requires_grad=True)
    mimiq.head_similarity(scores).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("fused", [True, False])
def test_scores_are_found_in_attention_of_any_library(fused: bool) -> None:
    query, key, value = torch.randn(3, 2, 2, 5, 4)
    with RecordedScores() as seen:
        if fused:
            F.scaled_dot_product_attention(query, key, value)
        else:
            ((query @ key.mT) / 2).softmax(-1) @ value
    (scores,) = seen.scores
    torch.testing.assert_close(scores * (1 if fused else 2), query @ key.mT)
    (patches,) = mimiq.patch_scores(seen.scores, None)  # 4 of 5 tokens form a square
    torch.testing.assert_close(patches, scores[:, :, 1:, 1:])


def alike(model: FloatModel, images: Tensor) -> float:
    net = copy.deepcopy(model.net)
    open_attention(net)
    with torch.no_grad(), RecordedScores() as seen:
        net(images)
    return float(
        torch.stack([mimiq.head_similarity(s).square().mean() for s in mimiq.patch_scores(seen.scores, None)]).mean()
    )


def test_mimiq_makes_heads_attend_to_the_same_positions() -> None:
    model = make_tiny_transformer()
    config = mimiq.Config(num_images=8, batch_size=8, steps=60, variation_weight=0.0)
    images = mimiq.generate(model, config, progress=False)
    without = mimiq.generate(model, replace(config, similarity_weight=0.0), progress=False)
    assert alike(model, images) > alike(model, without) + 0.05
    noise = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    smooth = mimiq.generate(model, replace(config, variation_weight=1.0), progress=False)
    assert total_variation(smooth) < 0.5 * total_variation(noise)


def test_the_rate_follows_a_cosine() -> None:
    config = mimiq.Config(steps=100)
    rates = [config.learning_rate * mimiq.rate(step, config) for step in (0, 50, 100)]
    assert rates == pytest.approx([0.1, 0.0505, 0.001])


def test_layer_norms_become_batch_norms_without_other_changes() -> None:
    model = make_tiny_transformer()
    twin = dgh_vit.with_batch_norms(model.net)
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(twin(images), model.net(images), rtol=1e-4, atol=1e-5)
    layers = stored_statistics(working_copy(twin, "cpu", model.image_shape), model.image_shape)
    norms = [module for module in model.net.modules() if isinstance(module, nn.LayerNorm)]
    assert layers.sizes == tuple(norm.normalized_shape[0] for norm in norms)
    assert not layers.mean.any()
    assert (layers.variance == 1).all()


def test_matched_statistics_are_those_before_scale_and_shift() -> None:
    model = make_tiny_transformer()
    images = dgh_vit.generate(
        model, dgh_vit.Config(num_images=16, batch_size=16, steps=60, output_stretching=False), progress=False
    )

    def distance(shown: Tensor) -> float:
        twin, seen = dgh_vit.with_batch_norms(model.net), []
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(lambda _, args: seen.append(args[0].transpose(0, 1).flatten(1)))
        twin(shown)
        return sum(float(x.mean(1).square().mean() + (x.std(1) - 1).square().mean()) for x in seen)

    noise = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert distance(images) < 0.8 * distance(noise)


def test_a_network_without_any_norm_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    model = FloatModel(name="plain", net=net, image_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(NoBatchNorm, match="neither layer norms over channels"):
        dgh_vit.generate(model, dgh_vit.Config(num_images=2, batch_size=2, steps=1), progress=False)


def test_mimiq_needs_heads_to_compare() -> None:
    with pytest.raises(mimiq.NoAttention, match="two heads or more"):
        mimiq._check_attention(
            FloatModel(name="n", net=nn.Identity(), image_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3),
            nn.Sequential(nn.Flatten(), nn.Linear(192, 5)),
            torch.zeros(1, 3, 8, 8),
            mimiq.Config(),
        )
