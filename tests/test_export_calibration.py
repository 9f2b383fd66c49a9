"""Calibration images for other tools: what is lost in each format, and that onnxruntime reads them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_static
from PIL import Image

from dghlib.export import ImageReader, export_onnx, open_session, save_npz, save_png
from dghlib.models import FloatModel

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


def images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_arrays_are_saved_without_loss(tmp_path: Path) -> None:
    save_npz(tmp_path / "set.npz", images(), MEAN, STD)
    with np.load(tmp_path / "set.npz") as arrays:
        assert np.array_equal(arrays["images"], images().numpy())
        np.testing.assert_allclose(arrays["mean"], MEAN)
        np.testing.assert_allclose(arrays["std"], STD)


def test_losses_of_png_files_by_hand(tmp_path: Path) -> None:
    pixels = torch.tensor([0.0, 1.0, 0.5, 2.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    normalised = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    loss = save_png(tmp_path / "set", normalised, MEAN, STD)
    read = np.asarray(Image.open(tmp_path / "set" / "00000.png"))
    assert read.shape == (2, 2, 3)
    assert read[:, :, 0].flatten().tolist() == [0, 255, 128, 255]
    assert loss.clamped == 0.25
    assert loss.rms == pytest.approx(((0.5**2 + 255**2) / 4) ** 0.5, rel=1e-3)


def test_rounding_alone_costs_three_tenths_of_a_level(tmp_path: Path) -> None:
    pixels = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = save_png(tmp_path / "set", (pixels - 0.5) / 0.25, (0.5,) * 3, (0.25,) * 3)
    assert loss.clamped == 0
    assert loss.rms == pytest.approx(12**-0.5, abs=0.01)


def test_folders_with_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        save_png(tmp_path, images(), MEAN, STD)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        save_png(tmp_path / "two", images()[:, :2], MEAN, STD)


def test_the_reader_yields_every_image_once_and_rewinds() -> None:
    reader = ImageReader(images(5), batch_size=2)
    for _ in range(2):
        batches = list(iter(reader.get_next, None))
        assert [len(batch["images"]) for batch in batches] == [2, 2, 1]
        assert np.array_equal(np.concatenate([batch["images"] for batch in batches]), images().numpy())
        reader.rewind()
    assert len(reader) == 3


def test_onnxruntime_quantizes_with_them(tiny_model: FloatModel, tmp_path: Path) -> None:
    export_onnx(tmp_path / "float.onnx", tiny_model)
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        ImageReader(images(64)),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    (found,) = open_session(tmp_path / "int8.onnx").run(None, {"images": images().numpy()})
    with torch.no_grad():
        expected = tiny_model.net(images()).numpy()
    assert np.square(found - expected).sum() < 0.01 * np.square(expected).sum()
