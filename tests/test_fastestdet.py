"""FastestDet: its outputs, their meaning, its quantized copy and file; and detectors with their own decoder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dghlib import datasets, models
from dghlib.evaluation import found_boxes, mean_average_precision
from dghlib.export import OnnxNetwork, export_onnx
from dghlib.models import FloatModel, fastestdet
from dghlib.models.detectors import detector_of, scaled
from dghlib.quantizers import hptq

CERTAIN = 20.0  # a logit


def untrained() -> FloatModel:
    torch.manual_seed(0)
    return replace(fastestdet.as_model(fastestdet.FastestDet()), image_shape=(3, 64, 96))


def published() -> FloatModel:
    try:
        datasets.load_annotated("coco_lite", "test", 1)
        return models.load(fastestdet.NAME)
    except FileNotFoundError as error:
        pytest.skip(f"the public weights or photographs are not here: {error}")


def outputs_with(objects: Sequence[tuple[int, int, int]], size: float = 0.0) -> dict[str, Tensor]:
    """Return outputs for 1 image of 2 x 2 cells with objects (row, column, category) at the corners of cells."""
    objectness, categories = torch.full((1, 1, 2, 2), -CERTAIN), torch.zeros(1, 80, 2, 2)
    boxes = torch.tensor([0, 0, size, size]).view(1, 4, 1, 1).repeat(1, 1, 2, 2)
    for row, column, category in objects:
        objectness[0, 0, row, column] = CERTAIN
        categories[0, category, row, column] = CERTAIN
    return {"objectness": objectness, "boxes": boxes, "categories": categories}


def test_a_cell_for_every_16th_pixel() -> None:
    net = untrained().net
    with torch.no_grad():
        shapes = {name: tuple(value.shape) for name, value in net(torch.zeros(2, 3, 64, 96)).items()}
    assert shapes == {"objectness": (2, 1, 4, 6), "boxes": (2, 4, 4, 6), "categories": (2, 80, 4, 6)}
    assert sum(parameter.numel() for parameter in net.parameters()) == 244_490


def test_a_folded_head_computes_the_same_and_has_no_batch_norms() -> None:
    net = fastestdet.FastestDet().train()
    with torch.no_grad():
        net(torch.rand(4, 3, 64, 96))  # not the initial statistics
    images = torch.rand(2, 3, 64, 96)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    with torch.no_grad():
        wanted = net.eval()(images)
        folded = fastestdet.with_folded_head(net)
        for name, value in folded(images).items():
            torch.testing.assert_close(value, wanted[name], atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.head.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == norms - 7


def test_boxes_by_hand() -> None:
    # Category 11, counted from 0, is the 12th, whose id is 13: no object has the id 12.
    (found,) = fastestdet.FastestDet().boxes_of(outputs_with([(1, 1, 11)]), [(100, 200)])
    assert found["labels"].tolist() == [13]
    assert found["scores"].item() == pytest.approx(1, abs=1e-4)
    # Its centre is the corner of its cell; its sides are half of the image's.
    torch.testing.assert_close(found["boxes"], torch.tensor([[50.0, 25.0, 150.0, 75.0]]))


def test_one_of_overlapping_boxes_is_kept_for_each_category() -> None:
    large = 4.0  # every box covers most of the image, so that the boxes of all cells overlap
    net, size = fastestdet.FastestDet(), [(10, 10)]
    assert len(net.boxes_of(outputs_with([(0, 0, 5), (0, 1, 5)], -large), size)[0]["labels"]) == 2
    near = outputs_with([(0, 0, 5), (0, 1, 5)], large)
    near["boxes"][0, 0, 0, 0] = CERTAIN  # one cell to the right: where the other is
    assert net.boxes_of(near, size)[0]["labels"].tolist() == [6]
    near["categories"][0, :, 0, 0] = near["categories"][0, :, 0, 0].flip(0)
    assert sorted(net.boxes_of(near, size)[0]["labels"].tolist()) == [6, 85]


def test_a_score_combines_objectness_and_category() -> None:
    outputs = outputs_with([(0, 0, 0)])
    outputs["objectness"][0, 0, 0, 0] = 0.0  # one half
    (found,) = fastestdet.FastestDet().boxes_of(outputs, [(10, 10)])
    assert found["scores"].item() == pytest.approx(0.5**0.6, abs=1e-4)


@pytest.mark.parametrize(
    "outputs",
    [
        [torch.zeros(1, 85, 2, 2)],
        {"objectness": torch.zeros(1, 1, 2, 2)},
        outputs_with([]) | {"categories": torch.zeros(1, 20, 2, 2)},
        outputs_with([]) | {"categories": torch.zeros(1, 80)},
    ],
    ids=["no names", "one lacks", "other categories", "no cells"],
)
def test_outputs_of_another_network_are_refused(outputs: Mapping[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"FastestDet returns tensors \(N, C, h, w\)"):
        fastestdet.FastestDet().boxes_of(outputs, [(10, 10)])


def test_a_quantized_copy_and_a_file_are_decoded_alike(tmp_path: Path) -> None:
    model = untrained()
    images = torch.rand(4, *model.image_shape)
    quantized = hptq.quantize(model, images, hptq.Config())
    layers = [module for module in model.net.modules() if isinstance(module, nn.Conv2d)]
    assert len(quantized.weight_quantizers()) == len(layers)  # none is left in float
    export_onnx(tmp_path / "net.onnx", model, quantized)
    file = OnnxNetwork(tmp_path / "net.onnx")
    photographs = [torch.rand(3, 60, 80), torch.rand(3, 96, 64)]
    with torch.no_grad():
        for key, wanted in quantized(images).items():
            assert (file(images)[key] - wanted).abs().mean() < 0.05 * wanted.abs().mean(), key
        for net in (model.net, quantized, file):
            answers = detector_of(model, net)(photographs)
            assert [answer["boxes"].shape[1] for answer in answers] == [4, 4]


class Corner(nn.Module):
    """A user's detector: one box in the top left corner, whose size is the image's brightness."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))

    def boxes_of(self, outputs: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        return [
            {
                "boxes": torch.tensor([[0, 0, width * bright, height * bright]]),
                "labels": torch.tensor([1]),
                "scores": torch.tensor([0.9]),
            }
            for bright, (height, width) in zip(outputs.tolist(), sizes, strict=True)
        ]


def model_of(net: nn.Module) -> FloatModel:
    return FloatModel(name="own", net=net, image_shape=(3, 8, 8), mean=(0.25,) * 3, std=(0.5,) * 3, task="detection")


def test_a_users_detector_decodes_its_outputs() -> None:
    (found,) = detector_of(model_of(Corner()), Corner())([torch.full((3, 20, 40), 0.75)])
    bright = (191 / 255 - 0.25) / 0.5  # in 8 bits, normalised
    torch.testing.assert_close(found["boxes"], torch.tensor([[0, 0, 40 * bright, 20 * bright]]))


def test_a_detector_without_a_decoder_is_refused_with_a_remedy() -> None:
    with pytest.raises(TypeError, match=r"give Conv2d a method boxes_of\(outputs, sizes\)"):
        detector_of(model_of(nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 3, 1))


def test_scaled_pixels_stay_integers() -> None:
    stripes = torch.tensor([0, 255, 0, 255], dtype=torch.uint8).expand(1, 3, 4, 4)
    assert scaled(stripes, (4, 4)) is stripes
    smaller = scaled(stripes, (2, 2))
    assert smaller.dtype == torch.uint8
    assert 64 <= int(smaller.min()) <= int(smaller.max()) <= 191  # neighbours are averaged, not skipped


def test_fastestdet_finds_the_objects_in_photographs() -> None:
    model, data = published(), datasets.load_annotated("coco_lite", "test", 24)
    found = found_boxes(detector_of(model, model.net), data.images, data.image_ids)
    assert mean_average_precision(data.annotations, found)["map50"] > 25  # with channels in another order, 20 % less


@pytest.mark.slow
def test_fastestdet_reaches_its_known_precision() -> None:
    model, data = published(), datasets.load_annotated("coco_lite", "test")
    percent = mean_average_precision(
        data.annotations, found_boxes(detector_of(model, model.net), data.images, data.image_ids)
    )
    assert percent["map"] == pytest.approx(14.85, abs=0.05)
    assert percent["map50"] == pytest.approx(28.83, abs=0.1)
