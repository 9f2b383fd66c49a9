"""Detectors: their boxes in float, images made from them, their quantized copies."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d

from dghlib import models
from dghlib.datasets import scenes
from dghlib.evaluation import found_boxes, mean_average_precision
from dghlib.generators import dgh, genie_d, intraq, zeroq
from dghlib.models import FloatModel, coco, detectors, embedded
from dghlib.quantizers import QuantizedModel, adaround, hptq
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.tracing import trace
from dghlib.running.batchnorm import NoBatchNorm, stored_statistics
from dghlib.synthesis.classes import NotAClassifier
from dghlib.synthesis.matching import measure, output_range

NAMES = list(detectors.NETS)


class Levels(nn.Module):
    """A backbone with frozen batch norm and 2 levels."""

    out_channels = 4

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=4, padding=1), norm

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.norm(self.conv(images))
        return {"0": first, "1": nn.functional.max_pool2d(first, 2)}


def tiny_retinanet(norm: nn.Module, head_norm: type[nn.Module] | partial = nn.BatchNorm2d) -> FloatModel:
    """Return a detector of rectangles; its head has batch norms that every level passes."""
    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    head = RetinaNetHead(4, 1, 3, head_norm)
    net = detectors.DetectorNet(RetinaNet(Levels(norm), 3, 24, 40, [0.5] * 3, [0.3] * 3, anchors, head)).eval()
    return FloatModel(name="tiny", net=net, image_shape=(3, 24, 40), mean=(0.5,) * 3, std=(0.3,) * 3, task="detection")


def pixels(count: int, shape: tuple[int, ...]) -> list[Tensor]:
    return list(torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_reaches_its_recorded_precision(name: str) -> None:
    record = json.loads((embedded.CHECKPOINTS / f"{name}.json").read_text())
    assert record["map"] >= 40
    model, data = models.load(name), scenes.detection("test", 48)
    found = found_boxes(detectors.detector_of(model, model.net), data.images, data.image_ids)
    assert mean_average_precision(data.annotations, found)["map"] == pytest.approx(record["map"], abs=8)
    assert embedded.checkpoint(name).stat().st_size < 3_000_000


@pytest.mark.parametrize("name", NAMES)
def test_the_boxes_of_a_copy_of_the_network_are_the_same(name: str) -> None:
    model = models.load(name)
    images = pixels(2, (3, 80, 64))
    assert isinstance(model.net, detectors.DetectorNet)
    with torch.no_grad():
        wanted = model.net.detector.eval()(images)
        found = detectors.detector_of(model, model.net)(images)
    for one, other in zip(wanted, found, strict=True):
        assert one["boxes"].equal(other["boxes"])
        assert one["scores"].equal(other["scores"])


def test_only_detectors_find_boxes() -> None:
    model = models.load("shapes_inverted")
    with pytest.raises(TypeError, match="shapes_inverted is for classification"):
        detectors.detector_of(model, model.net)


def test_batch_norms_of_backbone_and_head_are_measured_over_all_levels() -> None:
    model = tiny_retinanet(FrozenBatchNorm2d(4))
    layers = stored_statistics(model.net, model.image_shape)
    assert len(layers.names) == 1 + 4 + 4
    images = torch.randn(3, *model.image_shape)
    inside: list[Tensor] = []
    norm = model.net.get_submodule("detector.head.classification_head.conv.0.1")
    handle = norm.register_forward_pre_hook(lambda _, args: inside.append(args[0]))
    measured = measure(model.net, images, layers)
    handle.remove()
    assert len(inside) == 2  # one call for each level
    everywhere = torch.cat([values.transpose(0, 1).flatten(1) for values in inside], dim=1)
    place = sum(layers.sizes[: layers.names.index("detector.head.classification_head.conv.0.1")])
    torch.testing.assert_close(measured.moments[0, 0, place : place + 4], everywhere.mean(1))
    torch.testing.assert_close(measured.moments[0, 1, place : place + 4], everywhere.square().mean(1))


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (dgh, dgh.Config(num_images=3, batch_size=2, steps=2)),
        (dgh, dgh.Config(num_images=2, steps=1, output_stretching=False)),
        (zeroq, zeroq.Config(num_images=4, batch_size=2, steps=2)),
        (genie_d, genie_d.Config(num_images=3, batch_size=2, steps=2)),
    ],
    ids=["dgh", "dgh without stretching", "zeroq", "genie_d"],
)
def test_images_are_made_from_a_detector(method, config) -> None:  # type: ignore[no-untyped-def]
    images = method.generate(tiny_retinanet(FrozenBatchNorm2d(4)), config, progress=False)
    assert images.shape == (config.num_images, 3, 24, 40)
    assert images.isfinite().all()


def test_every_output_tensor_is_stretched() -> None:
    model = models.load("shapes_ssdlite")
    outputs = model.net(torch.randn(2, *model.image_shape))
    wanted = [values.flatten(1).amax(1) - values.flatten(1).amin(1) for values in outputs.values()]
    assert output_range(outputs).equal(torch.stack(wanted))
    config = dgh.Config(num_images=8, steps=60)
    plain, stretched = (
        output_range(model.net(dgh.generate(model, replace(config, output_share=share), progress=False))).mean()
        for share in (0.0, 0.4)
    )
    assert stretched > plain


def test_methods_that_need_classes_refuse_a_detector() -> None:
    with pytest.raises(NotAClassifier, match="tiny is for detection"):
        intraq.generate(tiny_retinanet(nn.BatchNorm2d(4)), intraq.Config(num_images=4), progress=False)


def test_a_detector_without_batch_norm_is_refused() -> None:
    with pytest.raises(NoBatchNorm):
        dgh.generate(tiny_retinanet(nn.Identity(), partial(nn.GroupNorm, 2)), dgh.Config(num_images=2), progress=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_quantized_detector_finds_nearly_the_same_boxes(name: str) -> None:
    model, data = models.load(name), scenes.detection("test", 24)
    images = (torch.as_tensor(data.images).float() / 255 - model.mean[0]) / model.std[0]
    quantized = hptq.quantize(model, images[:8], hptq.Config())
    nets = (model.net, quantized)
    float_map, quantized_map = (
        mean_average_precision(
            data.annotations, found_boxes(detectors.detector_of(model, net), data.images, data.image_ids)
        )["map"]
        for net in nets
    )
    assert abs(float_map - quantized_map) < 10
    layers = [module for module in model.net.modules() if isinstance(module, nn.Conv2d)]
    assert len(quantized.weight_quantizers()) == len(layers)  # no layer is left in float


def test_every_layer_of_a_detector_learns() -> None:
    model = tiny_retinanet(nn.BatchNorm2d(4))
    images = torch.randn(4, *model.image_shape)
    quantized = adaround.quantize(model, images, adaround.Config(activation_bits=8, iterations=2))
    learned = {unit["unit"] for unit in quantized.about["units"]}
    assert learned == set(quantized.weight_quantizers())
    assert len(learned) == 1 + 5 + 5


def behind(kind: type[nn.Module], quantized: QuantizedModel) -> list[UniformQuantizer]:
    """Return the grids of the outputs of an activation function."""
    grids, graph = quantized.activation_quantizers(), quantized.graph
    nodes = [node for node in graph.graph.nodes if node.name in grids and node.op == "call_module"]
    return [grids[node.name] for node in nodes if isinstance(graph.get_submodule(str(node.target)), kind)]


@pytest.mark.parametrize("name", coco.BUILDERS)
def test_the_detectors_of_coco_can_be_traced(name: str) -> None:
    model = coco.as_model(name, coco.BUILDERS[name]())
    graph = trace(model.net, torch.zeros(1, 3, 96, 64), known_sizes=False)
    small = torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        assert [value.shape for value in graph(small).values()] == [value.shape for value in model.net(small).values()]


def test_an_untrained_detector_of_coco_is_quantized_with_generated_images() -> None:
    torch.manual_seed(0)
    model = replace(coco.as_model("coco_ssdlite", coco.BUILDERS["coco_ssdlite"]()), image_shape=(3, 96, 64))
    images = dgh.generate(model, dgh.Config(num_images=2, steps=1), progress=False)
    quantized = hptq.quantize(model, images, hptq.Config())
    swishes, gates = (behind(kind, quantized) for kind in (nn.Hardswish, nn.Hardsigmoid))
    assert any(not grid.signed and grid.zero_point > 0 for grid in swishes)  # shifted: a short negative tail
    assert not any(grid.signed for grid in gates)
    data = scenes.detection("test", 2)
    found = found_boxes(detectors.detector_of(model, quantized), data.images, data.image_ids)
    assert mean_average_precision(data.annotations, [box for box in found if box["category_id"] <= 6])["map"] < 5
