"""Methods without images: batch-norm predictions, SQuant's flips, DFQ's scales, files and refusals."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dghlib import cli, models
from dghlib.experiments import run
from dghlib.experiments.experiment import Experiment
from dghlib.experiments.profiles import BUDGETS
from dghlib.export import export_onnx, open_session
from dghlib.models import FloatModel
from dghlib.plans.parts import without_images
from dghlib.quantizers import (
    QUANTIZERS,
    WITHOUT_IMAGES,
    QuantizedModel,
    brecq,
    compensated,
    dfq,
    hptq,
    lsq,
    noise_report,
    ocs,
    saved_facts,
    squant,
)
from dghlib.quantizers.calibration import Histogram, observe
from dghlib.quantizers.compensation import _line, compensate
from dghlib.quantizers.equalization import equalize, pairs_of
from dghlib.quantizers.expectation import expect
from dghlib.quantizers.fine_tuning import fine_tune
from dghlib.quantizers.flips import flipped, flipped_weight
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.no_images import grid_of_all
from dghlib.quantizers.operations import layer_at, layer_calls
from dghlib.quantizers.placement import every_tensor
from dghlib.quantizers.reconstruction import shortened
from dghlib.quantizers.scale_search import weight_grid
from dghlib.quantizers.splitting import divided, input_axis, split
from dghlib.quantizers.splitting import outliers as channels_to_split
from dghlib.showing import quantizer_tables

MODULES = {name: QUANTIZERS[name] for name in WITHOUT_IMAGES}


def noise(num_images: int, seed: int = 0) -> Tensor:
    return torch.randn(num_images, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def config_of(method: Any, **changes: Any) -> Any:
    """Return a method's Config, with few steps if it learns."""
    config = method.Config(**changes)
    return replace(config, steps=8, batch_size=8, rate=0.0) if hasattr(config, "steps") else config


def as_model(net: nn.Module) -> FloatModel:
    return FloatModel(name="net", net=net.eval(), image_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def outputs(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return net(images)


# The contract


@pytest.mark.parametrize("method", MODULES.values(), ids=MODULES.keys())
def test_no_images_are_needed_and_the_float_model_is_unchanged(method: Any, tiny_model: FloatModel) -> None:
    before, random_state = copy.deepcopy(tiny_model.net.state_dict()), torch.get_rng_state()
    first, again = (method.quantize(tiny_model, None, config_of(method)) for _ in range(2))
    assert first.about["method"] in MODULES
    assert all(torch.equal(before[name], value) for name, value in tiny_model.net.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not {p.data_ptr() for p in tiny_model.net.parameters()} & {t.data_ptr() for t in first.state_dict().values()}


@pytest.mark.parametrize("method", MODULES.values(), ids=MODULES.keys())
def test_many_bits_equal_float_and_files_contain_the_model(method: Any, tiny_model: FloatModel, tmp_path: Path) -> None:
    config = config_of(method, weight_bits=16, activation_bits=32)
    quantized = method.quantize(tiny_model, None, config)
    images = noise(8)
    torch.testing.assert_close(outputs(quantized, images), outputs(tiny_model.net, images), rtol=5e-3, atol=5e-3)
    quantized = method.quantize(tiny_model, None, config_of(method, weight_bits=4, activation_bits=4))
    quantized.save(tmp_path / "file")
    torch.testing.assert_close(
        outputs(QuantizedModel.load(tmp_path / "file", tiny_model), images), outputs(quantized, images)
    )


@pytest.mark.parametrize("method", MODULES.values(), ids=MODULES.keys())
def test_images_determine_grids_of_tensors_if_given(method: Any, tiny_model: FloatModel) -> None:
    told, seen, other = (
        method.quantize(tiny_model, images, config_of(method, activation_bits=4)).activation_quantizers()["relu"].scale
        for images in (None, noise(16), 3 * noise(16))
    )
    assert len({told.item(), seen.item(), other.item()}) == 3


def test_methods_that_need_images_refuse_none(tiny_model: FloatModel) -> None:
    with pytest.raises(TypeError, match="calibration images must be a single tensor"):
        hptq.quantize(tiny_model, None, hptq.Config())  # type: ignore[arg-type]


# Predictions from batch norms


def statistics(histogram: Histogram) -> tuple[float, float]:
    share = histogram.counts / histogram.counts.sum()
    mean = float(histogram.centres() @ share)
    return mean, float((histogram.centres() - mean).square() @ share) ** 0.5


def test_predictions_from_batch_norms_match_training_images(tiny_model: FloatModel) -> None:
    """Of layers with a batch norm, the activation function after one, a sum and an average, for smooth noise."""
    graph = folded_graph(tiny_model)
    coarse = torch.randn(512, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    coloured = coarse * torch.tensor([1.2, 0.8, 0.5]).view(3, 1, 1)
    images = F.interpolate(coloured, 8, mode="bilinear") + 0.2 * noise(512)
    tensors = every_tensor(graph)
    told, seen = expect(graph, tensors, tiny_model), observe(graph, tensors, images, 128)
    for name in ("relu", "conv2", "relu_1"):
        assert statistics(told.histograms[name]) == pytest.approx(statistics(seen.histograms[name]), abs=0.1), name
    torch.testing.assert_close(told.input_means["conv2"], seen.input_means["conv2"], atol=0.05, rtol=0)
    assert told.histograms["images"].minimum == pytest.approx(-2, abs=1e-6)
    assert told.histograms["images"].maximum == pytest.approx(2, abs=1e-6)


def normalised(channels: int, mean: float, spread: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=0.0)
    nn.init.constant_(norm.weight, -spread)  # the sign does not affect the spread
    nn.init.constant_(norm.bias, mean)
    return norm


class Gates(nn.Module):
    def __init__(self, activation: nn.Module):
        super().__init__()
        self.conv, self.norm, self.activation = nn.Conv2d(3, 4, 1), normalised(4, 0.5, 0.8), activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.conv(x)))
        first, second = torch.cat([x, x + 1], dim=1).chunk(2, dim=1)
        return F.max_pool2d(first * torch.sigmoid(second), 2)


def test_a_layer_without_batch_norm_gets_the_range_of_correlated_inputs() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    last = net[2]
    assert isinstance(last, nn.Conv2d)
    graph = folded_graph(as_model(net))
    name = every_tensor(graph)[-1]
    found = expect(graph, [name], as_model(net)).histograms[name]
    reach = 3 * last.weight.detach().abs().sum((1, 2, 3))  # 3 deviations of all inputs at once
    bias = last.bias.detach() if last.bias is not None else torch.zeros(2)
    assert found.maximum == pytest.approx((bias + reach).max().item(), rel=1e-3)
    assert found.minimum == pytest.approx((bias - reach).min().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("activation", "mean"),
    # of normal values with mean 0.5 and deviation 0.8: for ReLU and ReLU6 by the formulas of the DFQ paper
    [(nn.ReLU(), 0.6295), (nn.ReLU6(), 0.6295), (nn.Identity(), 0.5)],
)
def test_means_after_functions_match_the_formulas(activation: nn.Module, mean: float) -> None:
    model = as_model(nn.Sequential(nn.Conv2d(3, 4, 1), normalised(4, 0.5, 0.8), activation, nn.Conv2d(4, 2, 1)))
    told = expect(folded_graph(model), [], model)
    torch.testing.assert_close(told.input_means["3"], torch.full((4,), mean).double(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("activation", [nn.Hardswish(), nn.SiLU(), nn.PReLU(4)])
def test_predictions_pass_products_parts_and_concatenations(activation: nn.Module) -> None:
    model = as_model(Gates(activation))
    graph = folded_graph(model)
    told = expect(graph, every_tensor(graph), model).histograms
    drawn = activation(0.5 + 0.8 * torch.randn(100_000, 4, generator=torch.Generator().manual_seed(0))).detach()
    expected = (drawn * torch.sigmoid(drawn.roll(1, 0) + 1)).mean().item()
    assert statistics(told["mul"])[0] == pytest.approx(expected, abs=0.05)


def test_tensors_without_a_prediction_are_refused_by_name() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Softmax(dim=1), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match=r"tensor '_2' cannot be predicted.*Calibrate with images"):
        squant.quantize(as_model(net), None, squant.Config())


# Flips


def ends(steps: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(steps, -8), torch.full_like(steps, 7)


@pytest.mark.parametrize("shape", [(64, 64, 9), (8, 1, 9), (16, 100, 1)])
def test_errors_of_kernels_and_channels_cancel(shape: tuple[int, int, int]) -> None:
    steps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp(-3.5, 3.5) * 2
    low, high = ends(steps)
    kernels, both = (flipped(steps, low, high, flips) - steps for flips in ("kernels", "both"))
    assert kernels.sum(2).abs().max() <= 0.5 + 1e-5
    assert both.sum(2).abs().max() <= 1 + 1e-5
    assert both.sum((1, 2)).abs().max() <= 0.5 + 1e-4
    assert both.abs().max() <= 1
    assert torch.equal(flipped(steps, low, high, "none"), steps.round())


def test_flips_by_hand() -> None:
    """The first channel's only kernel has a total error of 1.1; the second's have 0.2, 0.4 and 0.45, in all 1.05."""
    first, second = torch.tensor([[[0.6, 1.65, 2.65]]]), torch.tensor([[[0.7, 1.1], [0.6, 2.0], [2.55, 0.0]]])
    assert flipped(first, *ends(first), "kernels").tolist() == [[[0, 2, 3]]]
    assert flipped(second, *ends(second), "kernels").tolist() == [[[1, 1], [1, 2], [3, 0]]]
    assert flipped(second, *ends(second), "both").tolist() == [[[1, 1], [1, 2], [2, 0]]]


def test_no_flips_at_a_zero_sum_or_at_the_end_of_the_grid() -> None:
    steps = torch.tensor([[[0.25, -0.25, 1.0]], [[7.4, 7.4, 7.4]]])
    low, high = ends(steps)
    assert flipped(steps, low, high).tolist() == [[[0, 0, 1]], [[7, 7, 7]]]


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 4, 3), nn.Conv2d(6, 6, 3, groups=6), nn.ConvTranspose2d(4, 6, 2), nn.Linear(20, 5)]
)
def test_weights_are_on_their_grid_and_keep_their_sums(layer: Any) -> None:
    grid = weight_grid(layer, 4, "min_max")
    weight = flipped_weight(layer, grid)
    torch.testing.assert_close(grid(weight), weight, rtol=1e-5, atol=1e-6)
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    sums = (weight - layer.weight.detach()).transpose(0, axis).flatten(1).sum(1)
    assert (sums.abs() <= 0.5 * grid.scale.flatten() + 1e-5).all()


def test_flips_reduce_the_error_on_constant_images(tiny_model: FloatModel) -> None:
    images = noise(32)[:, :, :1, :1].expand(-1, -1, 8, 8)

    def error(flips: str) -> float:
        quantized = squant.quantize(tiny_model, None, squant.Config(weight_bits=3, activation_bits=32, flips=flips))
        return float((outputs(quantized, images) - outputs(tiny_model.net, images)).square().mean())

    assert error("both") < error("none")


# Scales across layers


class Chain(nn.Module):
    """Every way from a layer to the next that a scale can pass, and one that it cannot, on very unequal channels."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.prelu = nn.Conv2d(8, 12, 1, groups=4), nn.PReLU(12)
        self.transposed = nn.ConvTranspose2d(12, 6, 2, groups=2)
        self.linear = nn.Linear(6, 5)
        for norm in (self.norm1, self.norm2):
            norm.weight = nn.Parameter(torch.logspace(-2, 0.5, 8)[torch.randperm(8)])
            nn.init.uniform_(norm.bias, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm1(self.expand(x)))
        x = F.max_pool2d(F.relu(self.norm2(self.depthwise(x))), 2)
        x = F.hardswish(self.transposed(self.prelu(self.grouped(x))))
        return self.linear(x.mean((2, 3)))


def chain() -> FloatModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return as_model(Chain())


def test_scaled_channels_have_equal_ranges_and_the_same_outputs() -> None:
    model = chain()
    graph, plain = folded_graph(model), folded_graph(model)
    equalize(graph, absorb=False)
    images = 0.1 * noise(8)  # small, so that nothing reaches 6, where ReLU6 clips
    torch.testing.assert_close(outputs(graph, images), outputs(plain, images), rtol=1e-4, atol=1e-5)
    weights = {path: layer_at(graph, path).weight for path in ("expand", "depthwise", "grouped", "transposed")}
    reach = weights["depthwise"].abs().flatten(1).amax(1)
    torch.testing.assert_close(weights["expand"].abs().flatten(1).amax(1), reach, rtol=1e-2, atol=0)
    of_inputs = weights["grouped"].abs().reshape(4, 3, 2).amax(1).flatten()
    torch.testing.assert_close(of_inputs, reach, rtol=1e-2, atol=0)
    of_outputs = weights["grouped"].abs().flatten(1).amax(1)
    torch.testing.assert_close(weights["transposed"].abs().flatten(1).amax(1), of_outputs, rtol=1e-2, atol=0)
    assert [pair.second for pair in pairs_of(graph)] == [layer_at(graph, path) for path in list(weights)[1:]]
    told = {name: expect(each, [], model).input_means for name, each in (("before", plain), ("after", graph))}
    torch.testing.assert_close(told["before"]["linear"], told["after"]["linear"], rtol=1e-3, atol=1e-3)


def test_absorbed_biases_reduce_means_and_keep_the_outputs() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), normalised(4, 4.0, 0.1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    norm: Any = net[1]
    norm.running_var.fill_(100.0)
    model = as_model(net)
    graph, scaled = folded_graph(model), folded_graph(model)
    equalize(graph, absorb=True)
    equalize(scaled, absorb=False)
    images = noise(8)
    torch.testing.assert_close(outputs(graph, images), outputs(net, images), rtol=1e-4, atol=1e-5)
    absorbed, before = (expect(each, ["_2"], model).histograms["_2"].maximum for each in (graph, scaled))
    assert absorbed < 0.25 * before


def test_scales_reduce_the_error_with_one_grid_per_layer() -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    unequal = torch.logspace(-2, 1, 8)
    net[1].weight.data, net[3].weight.data = unequal, net[3].weight.data / unequal.reshape(1, 8, 1, 1)
    model, images = as_model(net), noise(32)

    def error(scaled: bool) -> float:
        config = dfq.Config(weight_bits=6, activation_bits=32, one_grid=True, equalize=scaled, bias_correction=False)
        quantized = dfq.quantize(model, None, config)
        assert all(len(grid.scale.unique()) == 1 for grid in quantized.weight_quantizers().values())
        return float((outputs(quantized, images) - outputs(model.net, images)).square().mean())

    assert error(True) < 0.1 * error(False)


def test_bias_correction_removes_the_predicted_mean_error() -> None:
    """The mean output is unchanged for inputs with the statistics of the batch norm."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), normalised(8, 0.5, 0.8), nn.ReLU(), nn.Conv2d(8, 6, 1))
    model = as_model(net)
    drawn = F.relu(0.5 + 0.8 * torch.randn(4096, 8, 1, 1, generator=torch.Generator().manual_seed(0)))

    def error(correct: bool) -> float:
        config = dfq.Config(weight_bits=3, activation_bits=32, equalize=False, bias_correction=correct)
        layer: Any = dfq.quantize(model, None, config).graph.get_submodule("3")
        return float((outputs(layer, drawn) - outputs(net[3], drawn)).mean((0, 2, 3)).abs().max())

    assert error(True) < 0.02 < error(False)


def test_reports_compare_with_the_prepared_network(tiny_model: FloatModel) -> None:
    quantized = dfq.quantize(tiny_model, None, dfq.Config(weight_bits=8, activation_bits=8))
    assert quantized.about["preparation"] == {"equalize": {"absorb": True}}
    weights = [each.own for each in noise_report(tiny_model, quantized, noise(8)) if each.kind == "weight"]
    assert min(weights) > 35


# Split channels


class Outliers(nn.Module):
    """Layers of every kind whose input channels differ in range; the depthwise one and the first are not split."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 20, 1), nn.Conv2d(20, 20, 3, padding=1, groups=20)
        self.conv, self.transposed = nn.Conv2d(20, 12, 3), nn.ConvTranspose2d(12, 10, 2)
        self.linear = nn.Linear(10, 5)
        with torch.no_grad():
            for layer, channel in ((self.conv, 7), (self.linear, 3)):
                layer.weight[:, channel] *= 8
            self.transposed.weight[2] *= 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.depthwise(self.first(x))))
        return self.linear(F.relu(self.transposed(F.relu(x))).mean((2, 3)))


def outliers_model() -> FloatModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return as_model(Outliers())


def test_split_channels_give_the_same_outputs_with_half_the_range() -> None:
    model = outliers_model()
    graph = folded_graph(model)
    split(graph, expand=0.15)
    images = noise(8)
    torch.testing.assert_close(outputs(graph, images), outputs(model.net, images), rtol=1e-5, atol=1e-6)
    channels = {path: layer.weight.shape[input_axis(layer)] for path, layer in layers_of(graph).items()}
    assert channels == {"first": 3, "depthwise": 1, "conv": 20 + 3, "transposed": 12 + 2, "linear": 10 + 2}
    for path in ("conv", "transposed", "linear"):
        reach = [float(layer_at(each, path).weight.abs().max()) for each in (graph, folded_graph(model))]
        assert reach[0] <= 0.5 * reach[1]


def layers_of(graph: Any) -> dict[str, Any]:
    return {str(call.target): layer for call, layer in layer_calls(graph)}


def test_the_largest_channels_are_split_and_their_halves_again() -> None:
    layer = nn.Linear(4, 1)
    layer.weight = nn.Parameter(torch.tensor([[1.0, -8.0, 3.0, 0.5]]))
    assert channels_to_split(layer, 4) == [1, 1, 4, 2]  # 8 becomes 4 and 4, each 4 becomes 2 and 2; then 3 is split
    whole = layer.weight.detach()
    halves = divided(whole, 1, [1, 1, 4, 2])
    assert halves.tolist() == [[1.0, -2.0, 1.5, 0.5, -2.0, -2.0, -2.0, 1.5]]


def test_rounded_halves_add_up_to_the_rounded_weight() -> None:
    whole = torch.linspace(-6, 6, 4001, dtype=torch.float64).reshape(-1, 1)
    parts = divided(whole, 1, [0, 1, 0], step=0.5)
    torch.testing.assert_close(parts.sum(1, keepdim=True), whole)
    rounded = (parts / 0.5).round().sum(1, keepdim=True)
    away = (whole / 0.5 % 1 - 0.5).abs() > 1e-6  # not near a tie of 2 codes, where both are right
    assert torch.equal(rounded[away], (whole / 0.5).round()[away])
    assert not torch.equal((divided(whole, 1, [0, 1, 0]) / 0.5).round().sum(1, keepdim=True), (whole / 0.5).round())


def test_splitting_reduces_the_error_of_outliers_at_four_bits() -> None:
    model, images = outliers_model(), noise(16)

    def error(expand: float) -> float:
        quantized = ocs.quantize(model, None, ocs.Config(weight_bits=4, activation_bits=32, expand=expand))
        return float((outputs(quantized, images) - outputs(model.net, images)).square().mean())

    assert error(0.15) < 0.5 * error(0.0)


def test_a_share_beyond_all_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expand"):
        ocs.Config(expand=1.5)


def test_files_with_split_channels_run(tmp_path: Path) -> None:
    model, images = outliers_model(), noise(4)
    quantized = ocs.quantize(model, None, ocs.Config(weight_bits=8, activation_bits=8, expand=0.2))
    export_onnx(tmp_path / "split.onnx", model, quantized)
    session = open_session(tmp_path / "split.onnx", optimized=False)
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    step = float(list(quantized.activation_quantizers().values())[-1].scale)
    assert (found - outputs(quantized, images)).abs().max() <= step * 1.001


@pytest.mark.parametrize("method", [hptq, squant, brecq], ids=["hptq", "squant", "brecq"])
def test_every_method_can_scale_channels(method: Any, tmp_path: Path) -> None:
    """With 2 layers whose channels have very different ranges; files are read with their preparation."""
    model, images = chain(), noise(8)
    config = method.Config(weight_bits=8, activation_bits=8, equalize=True)
    config = shortened(config, 2) if method is brecq else config
    quantized, plain_copy = (method.quantize(model, images, each) for each in (config, replace(config, equalize=False)))
    assert quantized.about["preparation"] == {"equalize": {"absorb": True}}
    assert "preparation" not in plain_copy.about
    reach = [
        each.graph.get_submodule("expand").layer.weight.abs().flatten(1).amax(1) for each in (quantized, plain_copy)
    ]
    assert reach[0].max() / reach[0].min() < 0.5 * reach[1].max() / reach[1].min()
    quantized.save(tmp_path / "file")
    read = QuantizedModel.load(tmp_path / "file", model)
    torch.testing.assert_close(outputs(read, images), outputs(quantized, images))


def test_a_file_of_a_fine_tuned_copy_keeps_the_preparation_of_its_start(tmp_path: Path) -> None:
    model = models.load("shapes_residual")
    images = 2 * torch.randn(8, *model.image_shape, generator=torch.Generator().manual_seed(0))
    start = ocs.quantize(model, None, ocs.Config(weight_bits=4, activation_bits=8))
    config = lsq.Config(weight_bits=4, activation_bits=8, steps=2, batch_size=4)
    tuned = fine_tune("lsq", model, images, config, None, start)
    tuned.save(tmp_path / "file")
    read = QuantizedModel.load(tmp_path / "file", model)
    torch.testing.assert_close(outputs(read, images), outputs(tuned, images))


def test_channels_of_a_grid_of_a_whole_layer_share_no_memory() -> None:
    """Values that share memory cannot be written to, so a fine-tuning from them could not be restored."""
    grid = grid_of_all(nn.Conv2d(3, 4, 1), 4, ocs.Config().weight_search)
    for values in (grid.scale, grid.zero_point):
        assert values.shape == (4, 1, 1, 1)
        values.copy_(values.clone())


# Compensation


def test_a_correction_for_each_channel_undoes_a_wrong_scale_and_shift(tiny_model: FloatModel) -> None:
    images, others = noise(64), noise(64, seed=1)
    quantized = squant.quantize(tiny_model, None, squant.Config(weight_bits=16, activation_bits=32))
    layer: Any = quantized.graph.get_submodule("conv1")
    codes = layer.weight_quantizer.to_codes(layer.layer.weight)
    grid = layer.weight_quantizer
    layer.layer.weight = nn.Parameter(layer.layer.weight * 1.3, requires_grad=False)
    layer.weight_quantizer = UniformQuantizer(grid.scale * 1.3, grid.zero_point, bits=16, signed=grid.signed)
    layer.layer.bias = nn.Parameter(layer.layer.bias + 0.2, requires_grad=False)
    expected, before = outputs(tiny_model.net, others), outputs(quantized, others)
    compensate(tiny_model, quantized, images, ridge=0)
    torch.testing.assert_close(outputs(quantized, others), expected, rtol=1e-2, atol=1e-2)
    assert (before - expected).abs().max() > 0.1
    assert torch.equal(layer.weight_quantizer.to_codes(layer.layer.weight), codes)


def test_a_correction_by_hand() -> None:
    x = torch.tensor([1.0, 1.0, 3.0, 3.0]).view(4, 1, 1, 1)  # fitted images, 0 and 2: mean 2, variance 1
    y = 1.5 * x + 1
    scale, shift = _line(x, y, ridge=0.25, with_scale=True, last=False)
    assert scale.tolist() == pytest.approx([1 + 0.5 / 1.25])
    assert shift.tolist() == pytest.approx([4 - 1.4 * 2])
    scale, shift = _line(x, y, ridge=0.25, with_scale=False, last=False)
    assert (scale.tolist(), shift.tolist()) == ([1], [2])
    assert _line(x, x, ridge=0.25, with_scale=True, last=False)[1].tolist() == [0]  # no possible gain


def test_compensation_is_kept_only_if_other_images_gain(tiny_model: FloatModel) -> None:
    """The fitted images differ from the others: a correction that helps the former harms the latter."""
    quantized = squant.quantize(tiny_model, None, squant.Config(weight_bits=2, activation_bits=32))
    images = noise(16)
    images[::2] = 8 + 4 * images[::2].flip(1)
    compensate(tiny_model, quantized, images)
    judged = quantized.about["compensation"]
    again = squant.quantize(tiny_model, None, squant.Config(weight_bits=2, activation_bits=32))
    compensate(tiny_model, again, noise(16))
    assert judged["channels"] < again.about["compensation"]["channels"] <= judged["of"] == 17


def test_compensation_reduces_the_error_and_is_saved_in_files(tiny_model: FloatModel, tmp_path: Path) -> None:
    images, others = noise(64), noise(64, seed=1)
    config = compensated.Config(weight_bits=3, activation_bits=8)
    quantized = compensated.quantize(tiny_model, images, config)
    plain = squant.quantize(tiny_model, None, squant.Config(weight_bits=3, activation_bits=8))
    expected = outputs(tiny_model.net, others)
    errors = [float((outputs(net, others) - expected).square().mean()) for net in (quantized, plain)]
    assert errors[0] < errors[1]
    quantized.save(tmp_path / "file")
    torch.testing.assert_close(
        outputs(QuantizedModel.load(tmp_path / "file", tiny_model), others), outputs(quantized, others)
    )


def test_steps_that_are_powers_of_two_remain_so(tiny_model: FloatModel) -> None:
    images = noise(32)
    quantized = hptq.quantize(tiny_model, images, hptq.Config(weight_bits=3, activation_bits=8, bias_correction=False))
    before = {path: grid.scale for path, grid in quantized.weight_quantizers().items()}
    compensate(tiny_model, quantized, images)
    assert quantized.about["compensation"]["channels"] > 0
    assert all(torch.equal(grid.scale, before[path]) for path, grid in quantized.weight_quantizers().items())


def test_compensation_needs_two_images(tiny_model: FloatModel) -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        compensated.quantize(tiny_model, noise(1), compensated.Config())


# Experiments and the command line


def test_a_record_without_images_is_made_and_listed(tmp_path: Path) -> None:
    wanted = without_images("shapes", "shapes_residual", "W8A8", BUDGETS["smoke"], "squant")
    assert wanted.title == "shapes_residual squant W8A8 full, no images"
    whole = Experiment(profile="shapes", model="shapes_residual", test_images=wanted.test_images)
    records = run.run([whole, wanted], results=tmp_path / "results", progress=False)
    assert "images" not in records[1]["inputs"]
    assert abs(records[1]["outputs"]["top1"] - records[0]["outputs"]["top1"]) < 4  # of 96 images
    table = quantizer_tables.ways(records)
    assert table.index.tolist() == [("No images", "every tensor", "SQuant"), ("Float", "", ""), ("seeds", "", "")]
    assert table.columns.tolist() == [("residual", "W8A8")]


def test_dgh_quantize_requires_images_only_for_methods_that_need_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `--threads` sets this
    command = ["quantize", "shapes_bottleneck", "--out", str(tmp_path / "quantized.safetensors"), "--threads", "1"]
    assert cli.main([*command, "--method", "dfq"]) == 0
    assert saved_facts(tmp_path / "quantized.safetensors")["preparation"] == {"equalize": {"absorb": True}}
    assert cli.main([*command, "--method", "hptq", "--force"]) == 1
    assert "No images are needed by --method squant or dfq or ocs or gdfq or" in capsys.readouterr().err
