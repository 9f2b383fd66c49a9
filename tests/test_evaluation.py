"""Top-1, counted by hand, and its errors for wrong networks and labels."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dghlib import datasets, models
from dghlib.evaluation import agreement, top1
from dghlib.storage.assets import MissingAsset


def logits_of(rows: list[list[float]]) -> Tensor:
    """Return logits as images (N, K, 1, 1), which nn.Flatten returns unchanged."""
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), -1, 1, 1)


THREE_OF_FOUR = [
    (logits_of([[2, 1, 0], [0, 1, 2], [0, 3, 2]]), torch.tensor([0, 2, 2])),  # right, right, wrong
    (logits_of([[9, 9, 8]]), torch.tensor([0])),  # the first of equal logits counts
]


def test_top1_by_hand_with_a_smaller_last_batch() -> None:
    assert top1(nn.Flatten(), THREE_OF_FOUR) == 75.0


def test_modules_run_in_eval_mode_and_keep_their_mode() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), nn.Flatten())
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert top1(net, THREE_OF_FOUR) == 75.0  # no batch statistics, and no dropout
    assert [module.training for module in net] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_mode_is_restored_after_an_error() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 3))
    with pytest.raises(RuntimeError):
        top1(net, THREE_OF_FOUR)
    assert net.training


def test_no_gradients_are_recorded() -> None:
    seen = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    net.register_forward_hook(lambda module, args, logits: seen.append(logits.requires_grad))
    top1(net, THREE_OF_FOUR)
    assert seen == [False, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_moved_to_the_networks_device() -> None:
    assert top1(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).cuda(), THREE_OF_FOUR) == 75.0


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([[float("nan"), 0.0], [1.0, 0.0], [float("inf"), 0.0]], [0, 0, 0], "of 2 of the 3 images .* NaN or infinite"),
        ([[1.0, 0.0], [1.0, 0.0]], [0, 2], "labels must be 0 to 1 for 2 logits, got 0 to 2"),
        ([[1.0, 0.0], [1.0, 0.0]], [-1, 0], "labels must be 0 to 1 for 2 logits, got -1 to 0"),
        ([[1.0, 0.0], [1.0, 0.0]], [0], r"expected logits of shape \(1, K\), got \(2, 2\)"),
    ],
)
def test_wrong_logits_and_labels_are_refused(rows: list[list[float]], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top1(nn.Flatten(), [(logits_of(rows), torch.tensor(labels))])


def test_logits_for_every_pixel_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 3, 1, 1\)"):
        top1(nn.Identity(), [(logits_of([[1, 2, 3]]), torch.tensor([0]))])


def test_labels_in_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 1\)"):
        top1(nn.Flatten(), [(logits_of([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0], [1]]))])


def test_networks_that_return_no_tensor_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(TypeError, match="one that returns a tuple"):
        top1(Two(), [(logits_of([[1.0, 0.0]]), torch.tensor([0]))])


def test_no_images_are_refused() -> None:
    used_up: Iterator[tuple[Tensor, Tensor]] = iter([])
    with pytest.raises(ValueError, match="at least one image"):
        top1(nn.Flatten(), used_up)


@pytest.mark.parametrize("progress", [True, False])
def test_the_progress_bar_is_optional(capsys: pytest.CaptureFixture[str], progress: bool) -> None:
    top1(nn.Flatten(), THREE_OF_FOUR, total=2, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("top-1" in err) == progress


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("cifar10_resnet20", 91.73),
        ("cifar10_resnet56", 93.39),
        ("cifar10_mobilenetv2", 91.75),
        ("tiny_imagenet_mobilenetv2", 53.92),
    ],
)
def test_the_public_networks_reach_their_accuracy(name: str, published: float) -> None:
    try:
        model = models.load(name)
        data = datasets.load(name.rpartition("_")[0], "test")
    except MissingAsset as error:
        pytest.skip(str(error))
    assert top1(model.net, datasets.batches(data, model.mean, model.std, 32)) == pytest.approx(published, abs=0.02)


def test_agreement_is_the_share_of_equal_classes_and_needs_no_labels() -> None:
    images = torch.eye(4).repeat(5, 1)  # 20 images; a network returns the rows of its weight
    net, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.eye(4))
        other.weight.copy_(torch.eye(4)[[0, 1, 3, 2]])
    assert agreement(net.train(), net, images) == 100
    assert agreement(net, other.double(), images, batch_size=3) == 50
    assert net.training
