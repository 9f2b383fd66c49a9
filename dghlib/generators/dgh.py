"""DGH: all images together reproduce the batch-norm statistics, and each stretches the network's output.

Statistics of the whole image set are matched, whatever its size, because only moments of the other batches are
needed while one batch moves (`MomentBank`). Images are smoothed, flipped and cropped before each pass, as training
images were. The output layers that no batch norm watches are exercised by rewarding a wide range of outputs.

Source: Dikstein, Lapid, Netzer, Habi, "Data Generation for Hardware-Friendly Post-Training Quantization",
Algorithm 1, Eq. 2 to 8, appendix A.1; and the authors' code, model-compression-toolkit 2.6.1 ("the toolkit").

Differences from the paper:
 1. lambda and delta are not given there. Ours were settled by an experiment (lab notes in the book); delta is in
    units of the last batch norm's total variance, so that one value serves networks of any scale.
 2. Standard deviations are compared by default, as in the toolkit; Eq. 1b, 3b, 4 print variances (`spread`).
 3. The loss is a mean over channels and layers by default, as in the toolkit; Eq. 4 prints sums (`reduction`).
 4. The output range is rewarded linearly by default, as in the toolkit; Eq. 7 prints its square, under which the few
    images with the widest outputs run away (`output_power`).
 5. The moments stored for a batch are those of the pass that moved it, as in the toolkit; Algorithm 1 runs the
    network once more, lines 17 to 19 (`second_forward`).
 6. One learning-rate schedule for all batches, stepped once per iteration with their mean loss: the loss is global.
 7. Images are clipped to what pixels can show, as in the toolkit; the paper does not mention it. The image is
    quantized too, and a few impossible pixels would double the step of its grid (`clip`).
 8. 32 extra pixels at 224 are scaled with the size of the image (4 at 32 pixels, `extra_pixels`).

Differences from the toolkit: statistics of an unequal last batch are weighted by its size; flips and crops are
drawn per image, not per batch (`augmentation`); lambda weighs the mean over all images (Eq. 7), not over the batch,
so the toolkit's value is to be multiplied by its number of batches; the slack terms of Eq. 7 exist; the pixel layer
weighs as much as any other layer; weights are frozen; no half precision.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from dghlib.batchnorm import MomentBank, stored_statistics, working_copy
from dghlib.checkpoints import Checkpoint
from dghlib.choices import check_at_least, check_choice
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.matching import (
    Measurement,
    Reduction,
    Spread,
    batch_norm_distance,
    channel_weights,
    measure,
    output_range,
    slack_penalty,
    with_pixels,
)
from dghlib.generators.schedules import PlateauWithReset
from dghlib.images import centre_crop, clip_straight_through, flip_and_crop, smooth
from dghlib.models import FloatModel
from dghlib.seeds import stream

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one run; the defaults are what the experiments in the lab notes favour.

    `scope`, `preprocessing` and `output_stretching` are the paper's three parts (Table 4).
    """

    num_images: int = 1024
    batch_size: int = 128  # images that move together; no influence on what is matched when scope is None
    steps: int = 1000  # sweeps over all batches
    learning_rate: float = 16.0
    seed: int = 0

    scope: int | None = None  # images whose statistics are matched together; None: all of them (Eq. 4)
    spread: Spread = "std"
    reduction: Reduction = "mean"
    match_pixels: bool = False  # the image itself as one more layer, of mean 0 and variance 1
    second_forward: bool = False  # measure a batch again after its step (Algorithm 1, lines 17 to 19)

    preprocessing: bool = True  # smooth, flip, crop
    augmentation: Literal["image", "batch"] = "image"  # who shares one draw of flip and crop
    extra_pixels: int | None = None  # by how much images are larger than the crop; None: a seventh, even
    clip: bool = True  # to what 8-bit pixels can show, with straight-through gradients

    output_stretching: bool = True
    output_weight: float = 1e-4  # lambda
    output_power: Literal[1, 2] = 1  # of the output range: linear (the toolkit) or squared (Eq. 7)
    slack: float | None = 1.0  # delta; None: no constraint at the last batch norm

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size", "steps"):
            check_at_least(1, name, getattr(self, name))
        for name, choices in {
            "spread": ("std", "variance"),
            "reduction": ("mean", "sum"),
            "augmentation": ("image", "batch"),
            "output_power": (1, 2),
        }.items():
            check_choice(name, getattr(self, name), choices)
        if self.extra_pixels is not None:
            check_at_least(0, "extra_pixels", self.extra_pixels)
        if self.scope is not None:
            self._check_scope(self.scope)

    def _check_scope(self, scope: int) -> None:
        check_at_least(1, "scope", scope)
        if self.num_images % scope or (self.batch_size % scope and scope % self.batch_size):
            raise ValueError(
                f"scope {scope} must divide num_images {self.num_images}, and divide batch_size "
                f"{self.batch_size} or be a multiple of it; scope None matches all images together"
            )


SMOOTHING_SIGMA = 1.25  # of the 3x3 Gaussian, in pixels: the toolkit's; the paper gives the size only

# Published settings. The toolkit's lambda is 1e-5 per batch, at the 8 batches of its documented runs.
PRESETS = {
    "default": Config(),
    "paper": Config(
        spread="variance", reduction="sum", second_forward=True, clip=False, output_power=2, output_weight=1e-3
    ),
    "toolkit": Config(match_pixels=True, augmentation="batch", slack=None, output_weight=8e-5),
}


def generate(
    model: FloatModel,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    checkpoint: Path | None = None,
) -> Tensor:
    """Return images (num_images, C, H, W), float32 in the normalised space of `model`, on the CPU.

    The model is not changed. With `checkpoint`, a run that was killed continues from that file to the same images.

    Raises:
        NoBatchNorm: the network has no batch norm that images reach.
        ValueError: its weights or statistics are not finite.
        FloatingPointError: the loss became NaN; the step is named.
    """
    run = _Run(model, config, device)
    saved = Checkpoint(checkpoint, images_fingerprint(model, "dgh", VERSION, config))
    if state := saved.load():
        run.restore(state)
    else:
        run.fill_banks()
    with tqdm(total=config.steps, initial=run.step, desc=f"DGH {model.name}", disable=not progress) as bar:
        while run.step < config.steps:
            losses = [run.move(index) for index in torch.randperm(len(run.batches), generator=run.draws).tolist()]
            bns, odsl = torch.stack(losses).mean(0).tolist()
            if not bns + odsl < float("inf"):
                raise FloatingPointError(f"the loss of DGH is {bns + odsl} after {run.step} steps; lower learning_rate")
            run.schedule.step(bns + config.output_weight * odsl)
            run.set_learning_rate()
            run.step += 1
            bar.update()
            bar.set_postfix_str(f"BNS {bns:.3g}, ODSL {odsl:.3g}, lr {run.schedule.learning_rate:.3g}", refresh=False)
            saved.save_when_due(run.state)
    return run.finished_images()


class _Run:
    """Everything that changes while images are generated."""

    def __init__(self, model: FloatModel, config: Config, device: torch.device | str):
        self.model, self.config = model, config
        self.net = working_copy(model.net, device, model.image_shape)
        self.layers = stored_statistics(self.net, model.image_shape)
        if config.match_pixels:
            self.layers = with_pixels(self.layers, model.image_shape[0])
        self.weights = channel_weights(self.layers.sizes, config.reduction, self.layers.mean.device)
        self.draws = stream(config.seed, "dgh", "augmentation")
        self.step = 0

        self.images = _initial_images(model, config).to(device)
        self.batches = [batch.requires_grad_() for batch in self.images.split(config.batch_size)]
        self.optimizers = [torch.optim.RAdam([batch], config.learning_rate) for batch in self.batches]
        self.schedule = PlateauWithReset(config.learning_rate, patience=max(1, config.steps // 50))
        self.banks = self._banks()

    def _banks(self) -> list[tuple[MomentBank, int]]:
        """Return for every batch its bank and its index in there; as many batches share one as `scope` holds."""
        sizes = [len(batch) for batch in self.batches]
        scope = self.config.scope or self.config.num_images
        per_bank = max(1, scope // self.config.batch_size + bool(scope % self.config.batch_size))
        banks: list[tuple[MomentBank, int]] = []
        for start in range(0, len(sizes), per_bank):
            members = sizes[start : start + per_bank]
            bank = MomentBank(members, len(self.layers.mean), self.layers.mean.device)
            banks += [(bank, index) for index in range(len(members))]
        return banks

    def fill_banks(self) -> None:
        """Measure all batches once: Algorithm 1, lines 2 to 6."""
        for index in range(len(self.batches)):
            self._remeasure(index)

    def move(self, index: int) -> Tensor:
        """Move one batch by one step, Algorithm 1, lines 9 to 19; return its BNS and ODSL losses, (2,) detached."""
        config, batch = self.config, self.batches[index]
        bank, row = self.banks[index]
        measured = self._measure(batch)
        # Groups smaller than a batch stand alone: nothing else enters their statistics.
        alone = len(measured.moments) > 1
        joint = measured.moments if alone else bank.blend(row, measured.moments[0])
        bns = batch_norm_distance(joint, self.layers, self.weights, config.spread).mean()
        odsl = self._stretching_loss(measured)
        loss = bns + config.output_weight * bank.shares[row] * odsl
        (batch.grad,) = torch.autograd.grad(loss, batch)
        self.optimizers[index].step()
        if config.second_forward:
            self._remeasure(index)
        else:
            bank.store(row, measured.moments.mean(0))
        return torch.stack([bns.detach(), odsl.detach()])

    def set_learning_rate(self) -> None:
        """Hand the schedule's learning rate to the optimizers."""
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.schedule.learning_rate

    def finished_images(self) -> Tensor:
        """Return the images as the network is to see them: smoothed, cropped at the centre."""
        return torch.cat([self._finished(batch.detach()) for batch in self.batches]).cpu()

    def _finished(self, batch: Tensor) -> Tensor:
        if self.config.preprocessing:
            batch = centre_crop(smooth(batch, SMOOTHING_SIGMA), self.model.image_shape[1:])
        return self._clipped(batch)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to continue bit for bit."""
        return {
            "step": self.step,
            "images": self.images,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedule": self.schedule.state_dict(),
            "banks": [bank.state_dict() for bank, row in self.banks if row == 0],
            "draws": self.draws.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.step = state["step"]
        with torch.no_grad():
            self.images.copy_(state["images"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.schedule.load_state_dict(state["schedule"])
        first_of_bank = [bank for bank, row in self.banks if row == 0]
        for bank, saved in zip(first_of_bank, state["banks"], strict=True):
            bank.load_state_dict(saved)
        self.draws.set_state(state["draws"])

    def _measure(self, batch: Tensor) -> Measurement:
        scope = self.config.scope
        groups = len(batch) // scope if scope is not None and scope < len(batch) else 1
        return measure(self.net, self._prepared(batch), self.layers, groups)

    @torch.no_grad()
    def _remeasure(self, index: int) -> None:
        bank, row = self.banks[index]
        bank.store(row, self._measure(self.batches[index]).moments.mean(0))

    def _stretching_loss(self, measured: Measurement) -> Tensor:
        """Return the output-stretching loss of Eq. 7, averaged over the images."""
        if not self.config.output_stretching:
            return measured.output.new_zeros(())
        loss = -(output_range(measured.output) ** self.config.output_power)
        if self.config.slack is not None:
            loss = loss + slack_penalty(measured.last_moments, self.layers, self.config.slack, self.config.spread)
        return loss.mean()

    def _prepared(self, batch: Tensor) -> Tensor:
        """Return what the network is shown of a batch: smoothed, flipped, cropped (phi_prep of Algorithm 1)."""
        if not self.config.preprocessing:
            return self._clipped(batch)
        draws = len(batch) if self.config.augmentation == "image" else 1
        flips = torch.rand(draws, generator=self.draws) < 0.5
        height, width = self.model.image_shape[1:]
        tops = torch.randint(batch.shape[2] - height + 1, (draws,), generator=self.draws)
        lefts = torch.randint(batch.shape[3] - width + 1, (draws,), generator=self.draws)
        flips, tops, lefts = (values.expand(len(batch)) for values in (flips, tops, lefts))
        images = smooth(batch, SMOOTHING_SIGMA)
        return self._clipped(flip_and_crop(images, flips, tops, lefts, (height, width)))

    def _clipped(self, images: Tensor) -> Tensor:
        return clip_straight_through(images, self.model.mean, self.model.std) if self.config.clip else images


def _initial_images(model: FloatModel, config: Config) -> Tensor:
    """Return standard Gaussian noise, larger than the network's images by what the crop takes away."""
    channels, height, width = model.image_shape
    extra = (0, 0)
    if config.preprocessing:
        wanted = config.extra_pixels
        # 32 at 224 (the paper), in proportion elsewhere, even so that the centre is a whole pixel.
        extra = (2 * round(height / 14), 2 * round(width / 14)) if wanted is None else (wanted, wanted)
    shape = (config.num_images, channels, height + extra[0], width + extra[1])
    return torch.randn(shape, generator=stream(config.seed, "dgh", "images"))
