"""Data sets: what they return from files made here, and their errors for files that are wrong."""

import io
import logging
import pickle
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from dghlib import datasets
from dghlib.choices import UnknownName
from dghlib.datasets import LabelledImages, batches, files, sample, shapes
from dghlib.datasets.labelled import choose
from dghlib.storage import assets
from dghlib.storage.archives import DamagedArchive


def numbered(num_images: int, num_classes: int = 4) -> LabelledImages:
    """Images (N, 3, 2, 2) whose pixels all have the image's number; labels repeat."""
    numbers = torch.arange(num_images)
    pixels = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return LabelledImages(pixels, numbers % num_classes, tuple("abcdefgh"[:num_classes]))


# Labelled images


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, TypeError, "images must be torch.uint8, got torch.float32"),
        ({"labels": torch.zeros(2)}, TypeError, "labels must be torch.int64, got torch.float32"),
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, ValueError, r"got \(2, 4, 4\)"),
        ({"images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8)}, ValueError, r"got \(0, 3, 4, 4\)"),
        ({"labels": torch.tensor([0, 1, 0])}, ValueError, r"shape \(2,\), .* got \(3,\)"),
        ({"labels": torch.tensor([0, 2])}, ValueError, "labels must be 0 to 1, .* got 0 to 2"),
        ({"labels": torch.tensor([-1, 1])}, ValueError, "labels must be 0 to 1, .* got -1 to 1"),
    ],
)
def test_wrong_images_or_labels_are_refused(
    change: dict[str, torch.Tensor], error: type[Exception], message: str
) -> None:
    good = {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    with pytest.raises(error, match=message):
        LabelledImages(**(good | change), classes=("a", "b"))


def test_only_chosen_shapes_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = datasets.sample(datasets.load("shapes", "train", 60), 5, seed=1)
    drawn = Mock(wraps=shapes._draw)
    monkeypatch.setattr(shapes, "_draw", drawn)
    chosen = datasets.draw("shapes", "train", 5, seed=1, available=60)
    assert torch.equal(chosen.images, expected.images)
    assert torch.equal(chosen.labels, expected.labels)
    assert drawn.call_count == 5


def test_a_sample_is_drawn_without_replacement_and_keeps_labels_with_images() -> None:
    data = numbered(100)
    drawn = sample(data, 60, seed=1)
    numbers = drawn.images[:, 0, 0, 0].long()
    assert len(numbers.unique()) == 60
    assert torch.equal(drawn.labels, numbers % 4)
    assert torch.equal(sample(data, 60, seed=1).images, drawn.images)
    assert not torch.equal(sample(data, 60, seed=2).images, drawn.images)


def test_choosing_more_images_than_exist_is_refused() -> None:
    assert choose(5, None).tolist() == [0, 1, 2, 3, 4]
    for wrong in (0, 6):
        with pytest.raises(ValueError, match=f"num_images must be 1 to 5, .* got {wrong}"):
            sample(numbered(5), wrong, seed=0)


def test_batches_are_normalised_and_the_last_is_smaller() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    pairs = list(batches(numbered(7), mean, std, 3))
    assert [len(labels) for _, labels in pairs] == [3, 3, 1]
    assert torch.cat([labels for _, labels in pairs]).tolist() == [0, 1, 2, 3, 0, 1, 2]
    images, _ = pairs[1]
    assert images.dtype == torch.float32
    expected = [(4 / 255 - mean[channel]) / std[channel] for channel in range(3)]
    assert torch.allclose(images[1, :, 0, 1], torch.tensor(expected))


def test_wrong_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        batches(numbered(3), (0.0,) * 3, (1.0,) * 3, 0)
    with pytest.raises(ValueError, match="3 channels, but mean has 1 entries and std 1"):
        batches(numbered(3), (0.0,), (1.0,), 2)


# .npz files of users


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


PIXELS = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)  # (N, H, W, C)
LABELS = np.array([1, 0], dtype=np.int16)


@pytest.mark.parametrize("stored", [PIXELS, PIXELS.transpose(0, 3, 1, 2)], ids=["channels_last", "channels_first"])
def test_an_npz_of_either_layout_is_read(tmp_path: Path, stored: np.ndarray) -> None:
    data = datasets.load(save(tmp_path / "mine.npz", images=stored, labels=LABELS))
    assert torch.equal(data.images, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert data.labels.tolist() == [1, 0]
    assert data.classes == ("0", "1")


def test_class_names_of_an_npz_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.npz", images=PIXELS, labels=LABELS, classes=np.array(["cat", "dog", "eel"]))
    assert files.npz(path).classes == ("cat", "dog", "eel")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PIXELS}, "has no array labels"),
        ({"pictures": PIXELS}, "has no array images and no array labels"),
        ({"images": PIXELS / 255, "labels": LABELS}, r"uint8.* got float64; save pixels .*255 \* images"),
        ({"images": PIXELS[0], "labels": LABELS}, r"images must have shape .* got \(4, 5, 3\)"),
        ({"images": np.zeros((2, 4, 4, 7), np.uint8), "labels": LABELS}, r"got \(2, 4, 4, 7\)"),
        ({"images": PIXELS, "labels": LABELS.astype(float)}, "labels must be integers, got float64"),
        ({"images": PIXELS, "labels": np.array([0, 1, 1])}, r"labels must have shape \(2,\)"),
        ({"images": PIXELS, "labels": np.array([0, -1])}, "got -1 to 0"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, r"holds no image: its array images has shape \(0, 4, 5, 3\)"),
        ({"images": PIXELS, "labels": np.array([{}, {}])}, "not an .npz file of plain arrays"),
    ],
)
def test_errors_of_an_npz_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=rf"bad\.npz.*{message}"):
        files.npz(save(tmp_path / "bad.npz", **arrays))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not arrays at all"])
def test_a_file_that_is_not_an_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz is not an \.npz file"):
        files.npz(path)


def test_a_single_array_is_not_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", PIXELS)
    with pytest.raises(ValueError, match=r"one\.npy is not an \.npz file"):
        datasets.load(tmp_path / "one.npy")


# Folders of users


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """2 classes: a red and a grey image of 8x8, and a blue one of 8x8."""
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "set" / "a" / "blue.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "set" / "b" / "red.png")
    Image.new("L", (8, 8), 77).save(tmp_path / "set" / "b" / "grey.png")
    (tmp_path / "set" / "b" / "notes.txt").write_text("no image")
    return tmp_path / "set"


def test_a_folder_of_images_is_read(folder: Path) -> None:
    data = datasets.load(folder)
    assert data.images[:, :, 3, 3].tolist() == [[0, 0, 255], [77, 77, 77], [255, 0, 0]]
    assert data.labels.tolist() == [0, 1, 1]
    assert data.classes == ("a", "b")


def test_images_are_scaled_and_cropped_to_the_wanted_size(folder: Path) -> None:
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 8:22] = 200  # the middle third, which a centred square crop keeps, and pixels that scaling blends in
    Image.fromarray(stripes).save(folder / "a" / "wide.png")
    data = datasets.load(folder, image_shape=(3, 5, 5))
    assert data.images.shape == (4, 3, 5, 5)
    assert bool((data.images[1] == 200).all())


def test_some_images_of_a_folder_are_chosen(folder: Path) -> None:
    assert len(datasets.load(folder, num_images=2)) == 2


def test_only_the_chosen_images_of_a_folder_are_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every, read = datasets.load(folder), files.read_image
    opened: list[Path] = []

    def noted(file: Path, *arguments: Any) -> np.ndarray:
        opened.append(file)
        return read(file, *arguments)

    monkeypatch.setattr(files, "read_image", noted)
    for seed in range(3):
        opened.clear()
        drawn = datasets.draw(folder, "train", 2, seed)
        assert torch.equal(drawn.images, datasets.sample(every, 2, seed).images)
        assert len(opened) == 2


def test_grey_networks_get_grey_images_and_a_flat_folder_is_one_class(folder: Path) -> None:
    data = datasets.load(folder / "b", image_shape=(1, 4, 4))
    assert data.images[:, 0, 2, 2].tolist() == [77, 76]  # the brightness of red is 76 of 255
    assert data.classes == ("b",)
    np.savez(folder / "colour.npz", images=PIXELS, labels=np.zeros(len(PIXELS), int))
    with pytest.raises(ValueError, match=r"3 channels, .*; wanted \(1, 4, 4\)"):
        datasets.load(folder / "colour.npz", image_shape=(1, 4, 4))


def test_a_folder_of_several_sizes_needs_an_image_shape(folder: Path) -> None:
    Image.new("RGB", (9, 6)).save(folder / "b" / "z.png")
    with pytest.raises(ValueError, match=r"z\.png has height and width \(6, 9\), .* give an image_shape"):
        datasets.load(folder)


def test_an_unreadable_image_is_named(folder: Path) -> None:
    broken = folder / "b" / "broken.png"
    for content in (b"no image", (folder / "b" / "red.png").read_bytes()[:50]):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.png is not a readable image"):
            datasets.load(folder)


def test_a_folder_without_images_is_refused(folder: Path) -> None:
    (folder / "c").mkdir()
    with pytest.raises(ValueError, match=r"set/c holds no image"):
        datasets.load(folder)
    with pytest.raises(ValueError, match=r"set/c holds no image"):
        datasets.load(folder / "c")


# By name


def test_names_and_paths_are_found_and_others_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert datasets.load("shapes", num_images=3).images.shape == (3, 3, 32, 32)
    with pytest.raises(UnknownName, match=r"unknown data set 'cifar' \(did you mean 'cifar10'"):
        datasets.load("cifar")
    for path in ("mine.npz", "some/folder", Path("x.npz")):
        with pytest.raises(FileNotFoundError, match=f"{path} does not exist"):
            datasets.load(path)


def test_images_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 channels, height and width \(32, 32\); wanted \(3, 64, 64\)"):
        datasets.load("shapes", num_images=3, image_shape=(3, 64, 64))


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_an_unknown_split_is_refused(name: str) -> None:
    with pytest.raises(UnknownName, match=f"split of {name} 'tset'.*did you mean 'test'"):
        datasets.load(name, "tset")


# The public archives, as small ones made here


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DGHLIB_DATA", str(tmp_path))
    return tmp_path


def place(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)


def cifar_archive() -> bytes:
    """3 test images and 2 in each training batch, with the layout of the public archive."""
    stored = io.BytesIO()
    names = ["test_batch", *(f"data_batch_{number}" for number in range(1, 6))]
    batches_of = {
        name: {"data": np.full((3 if k == 0 else 2, 3072), k, np.uint8), "labels": [k, 0, 1][: 3 if k == 0 else 2]}
        for k, name in enumerate(names)
    }
    members: dict[str, object] = {"batches.meta": {"label_names": [f"class {k}" for k in range(10)]}, **batches_of}
    with tarfile.open(fileobj=stored, mode="w:gz") as archive:
        for name, value in members.items():
            content = pickle.dumps(value)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stored.getvalue()


def test_cifar10_is_read_from_its_archive(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_dir / "cifar10" / "cifar-10-python.tar.gz"
    place(path, cifar_archive())
    published = replace(assets.manifests()["cifar10"], sha256=assets.file_sha256(path))
    monkeypatch.setattr(assets, "manifests", lambda: {"cifar10": published})
    test, train = datasets.load("cifar10", "test"), datasets.load("cifar10", "train")
    assert test.images.shape == (3, 3, 32, 32)
    assert test.labels.tolist() == [0, 0, 1]
    assert train.images[:, 0, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert train.labels.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert train.classes[9] == "class 9"


def test_another_cifar10_archive_is_never_unpickled(data_dir: Path) -> None:
    place(data_dir / "cifar10" / "cifar-10-python.tar.gz", cifar_archive())
    with pytest.raises(assets.WrongChecksum):
        datasets.load("cifar10")


def test_cifar10_is_read_from_an_npz(data_dir: Path) -> None:
    (data_dir / "cifar10").mkdir()
    save(data_dir / "cifar10" / "cifar10_test.npz", images=np.zeros((4, 32, 32, 3), np.uint8), labels=np.arange(4))
    assert len(datasets.load("cifar10", "test")) == 4
    with pytest.raises(assets.MissingAsset, match="dgh data cifar10"):
        datasets.load("cifar10", "train")


def jpeg(mode: str, colour: int | tuple[int, int, int]) -> bytes:
    stored = io.BytesIO()
    Image.new(mode, (64, 64), colour).save(stored, "JPEG")
    return stored.getvalue()


TINY = {
    "wnids.txt": b"n20\nn10\n",  # not sorted, as in the public archive
    "words.txt": b"n10\tgoldfish, Carassius auratus\nn20\tbullfrog\nn30\tnot one of them\n",
    "val/val_annotations.txt": b"val_0.JPEG\tn20\t0\t0\t9\t9\nval_1.JPEG\tn10\t0\t0\t9\t9\n",
    "val/images/val_0.JPEG": jpeg("L", 100),
    "val/images/val_1.JPEG": jpeg("RGB", (250, 0, 0)),
    "train/n20/images/n20_0.JPEG": jpeg("RGB", (0, 0, 250)),
    "train/n10/images/n10_0.JPEG": jpeg("RGB", (0, 250, 0)),
    "train/n10/n10_boxes.txt": b"",
}


def place_tiny_imagenet(data_dir: Path, members: dict[str, bytes]) -> None:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    place(data_dir / "tiny_imagenet" / "tiny-imagenet-200.zip", stored.getvalue())


def test_tiny_imagenet_is_read_from_a_part_of_its_archive(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    place_tiny_imagenet(data_dir, TINY)
    with caplog.at_level(logging.WARNING):
        test, train = datasets.load("tiny_imagenet", "test"), datasets.load("tiny_imagenet", "train")
    assert assets.manifests()["tiny_imagenet"].sha256 in caplog.text
    assert test.classes == ("goldfish, Carassius auratus", "bullfrog")
    assert test.labels.tolist() == [1, 0]
    assert test.images[0, :, 5, 5].tolist() == [100, 100, 100]
    assert test.images[1, 0].min() > 240
    assert train.labels.tolist() == [0, 1]
    assert train.images[0, 1].min() > 240
    assert len(datasets.load("tiny_imagenet", "test", 1)) == 1


def test_a_wrong_tiny_imagenet_archive_is_refused(data_dir: Path) -> None:
    place_tiny_imagenet(data_dir, {name: content for name, content in TINY.items() if "val_1" not in name})
    with pytest.raises(ValueError, match=r"200\.zip is not laid out as the public archive \(.*val_1\.JPEG"):
        datasets.load("tiny_imagenet", "test")
    (data_dir / "tiny_imagenet" / "tiny-imagenet-200.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"200\.zip is not laid out .*not a zip"):
        datasets.load("tiny_imagenet", "test")


# The real ones, if they are on this machine


@pytest.mark.parametrize(
    ("name", "size", "per_class"), [("cifar10", 32, [1000] * 10), ("tiny_imagenet", 64, [50] * 200)]
)
def test_the_real_test_sets_are_complete_and_balanced(name: str, size: int, per_class: list[int]) -> None:
    try:
        data = datasets.load(name, "test")
    except assets.MissingAsset as error:
        pytest.skip(str(error))
    assert data.images.shape == (10_000, 3, size, size)
    assert data.labels.bincount().tolist() == per_class


# ImageNet


def test_imagenet_is_read_from_folders(data_dir: Path) -> None:
    """Of a wide image with a red square in the middle, scaled to 256 and cropped to 224, only red is left."""
    for name, colour in (("n02", (255, 0, 0)), ("n01", (0, 255, 0))):
        image = Image.new("RGB", (120, 60), (0, 0, 255))
        image.paste(colour, (30, 0, 90, 60))
        (data_dir / "imagenet" / "val" / name).mkdir(parents=True)
        image.save(data_dir / "imagenet" / "val" / name / "a.png")
    data = datasets.load("imagenet", "test")
    assert data.classes == ("n01", "n02")
    assert data.labels.tolist() == [0, 1]
    assert data.images.shape == (2, 3, 224, 224)
    assert (data.images[1, 0] == 255).all()
    assert (data.images[1, 1:] == 0).all()


def test_missing_imagenet_is_reported_with_its_path(data_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"imagenet.val is missing.*image-net.org"):
        datasets.load("imagenet", "test")


@pytest.mark.parametrize("size", [(224, 224), (128, 128), (64, 96)])
def test_a_test_crop_removes_a_sixteenth_on_each_side(size: tuple[int, int]) -> None:
    """Nothing is left of a frame of another colour that is 1/16 of the image wide on each side."""
    stored = io.BytesIO()
    height, width = size
    image = Image.new("RGB", (2 * width, 2 * height), (0, 0, 255))
    across, down = width // 8 - 2, height // 8 - 2
    image.paste((255, 0, 0), (across, down, 2 * width - across, 2 * height - down))
    image.save(stored, "png")
    pixels = files.evaluation_crop(stored, "image", size, Image.Resampling.NEAREST)
    assert pixels.shape == (3, *size)
    assert (pixels[0] == 255).all()


# The public part of ImageNet


def picture(red: int) -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (40, 30), (red, 0, 0)).save(stored, "png")
    return stored.getvalue()


WORDS = "".join(f"n{label:08d} thing {label}, other name\n" for label in range(1000)).encode()
LITE = {
    "synset_words.txt": WORDS,
    "dataset.txt": b"./data/val_1.JPEG, 999\n./data/val_2.JPEG, 3\n\n",
    "data/val_1.JPEG": picture(10),
    "data/val_2.JPEG": picture(20),
}
SAMPLES = {f"n{label:08d}_thing_{label}.JPEG": picture(label % 256) for label in reversed(range(1000))}


def place_lite(data_dir: Path, members: dict[str, bytes], name: str = "val1300", root: str = "acuity") -> Path:
    path = data_dir / "imagenet" / f"{name}.zip"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(f"{root}/{member}", content)
    return path


def test_imagenet_lite_is_read_from_a_repositorys_archive(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    place_lite(data_dir, LITE, root="acuity-1234/ILSVRC2012_VAL_SET")
    with caplog.at_level(logging.WARNING):
        data = datasets.load("imagenet_lite", "test", image_shape=(3, 32, 48))
    assert "val1300.zip holds files whose checksum is" in caplog.text
    assert data.images.shape == (2, 3, 32, 48)
    assert data.images[:, 0, 5, 5].tolist() == [10, 20]
    assert data.labels.tolist() == [999, 3]
    assert data.classes[3] == "thing 3, other name"
    assert datasets.load("imagenet_lite", "test", 1).images.shape == (1, 3, 224, 224)


def test_samples_of_imagenet_lite_have_the_class_of_their_wordnet_id(data_dir: Path) -> None:
    place_lite(data_dir, SAMPLES, "samples1000")
    data = datasets.load("imagenet_lite", "train", 20, (3, 16, 16))
    assert data.images[:, 0, 8, 8].tolist() == [label % 256 for label in data.labels.tolist()]
    assert data.classes[7] == "thing 7"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data/val_2.JPEG": b"no picture"}, r"val_2\.JPEG in .*val1300\.zip is not a readable image"),
        ({"data/val_2.JPEG": picture(1)[:60]}, r"val_2\.JPEG in .*val1300\.zip is not a readable image"),
        ({"dataset.txt": b"./data/val_1.JPEG, 1000\n"}, r"line 1 of dataset.txt is .*1000.*classes 0 to 999"),
        ({"dataset.txt": b"val_1"}, r"line 1 of dataset.txt is 'val_1', expected \"path, class\""),
        ({"dataset.txt": b"./data/val_3.JPEG, 1\n"}, r"dataset.txt names .*val_3.JPEG, which is not in the archive"),
        ({"dataset.txt": b"\xff\xfe"}, r"val1300.zip is not laid out as the public archive: .*decode"),
        ({"synset_words.txt": WORDS[:5000]}, r"synset_words.txt names \d+ classes, expected 1000, sorted"),
    ],
)
def test_a_wrong_archive_of_imagenet_lite_is_refused(change: dict, message: str, data_dir: Path) -> None:
    place_lite(data_dir, LITE | change, root="ILSVRC2012_VAL_SET")
    with pytest.raises(ValueError, match=message):
        datasets.load("imagenet_lite", "test", image_shape=(3, 32, 32))


def test_damaged_incomplete_or_missing_imagenet_lite_is_reported(data_dir: Path) -> None:
    with pytest.raises(assets.MissingAsset, match=r"samples1000.zip is missing. `dgh data imagenet_lite`"):
        datasets.load("imagenet_lite", "train")
    path = place_lite(data_dir, dict(list(SAMPLES.items())[:998]), "samples1000")
    with pytest.raises(ValueError, match="it holds images of 998 WordNet ids, expected one of each of 1000"):
        datasets.load("imagenet_lite", "train")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedArchive, match=r"samples1000.zip is damaged .*Delete it and get it again"):
        datasets.load("imagenet_lite", "train")
