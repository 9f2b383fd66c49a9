"""DGH: all images together match the batch-norm statistics, and each image stretches the network's outputs.

The statistics of the whole image set are matched, for sets of any size, because only the moments of the other batches
are needed while a batch is optimized (`MomentBank`). Images are smoothed, flipped and cropped before each pass, as
training images were. A reward for a wide range of outputs exercises the layers after the last batch norm.

Source: Dikstein, Lapid, Netzer, Habi, "Data Generation for Hardware-Friendly Post-Training Quantization",
Algorithm 1, Eq. 2 to 8, appendix A.1; and the authors' code, model-compression-toolkit 2.6.1 ("the toolkit").

Differences from the paper:
 1. The paper does not give lambda and delta, and no lambda suits all networks: it weighs two gradients whose ratio
    differs 500-fold between networks. Our lambda follows from the network: the norm of the reward's gradient is a share
    of the norm of the matching gradient. The share grows in proportion to the steps, from 0 to `output_share`, so that
    the content of an image settles before it is exaggerated. A share below 1 cannot undo the matching: to first order,
    a step along both gradients still decreases the matching loss; RAdam also scales each pixel. There is no slack,
    because the share bounds the reward. lambda is computed anew every few sweeps (`_Run.weighed_every`) with a second
    backward pass, and the learning rate waits for a plateau of the matching loss alone. `output_share=None` restores a
    fixed lambda and delta (`output_weight`, `slack`, in units of the last batch norm's total variance).
 2. Standard deviations are compared by default, as in the toolkit; Eq. 1b, 3b, 4 print variances (`spread`).
 3. The loss is a mean over channels and layers by default, as in the toolkit; Eq. 4 prints sums (`reduction`). The
    statistics of each layer are in units of the layer's spread, the root of its mean running variance (`relative`); Eq.
    4 takes them as they are. A batch norm removes the scale of the layer before it. Networks that compute the same
    function may therefore differ in these scales, and the layers with the widest sums would make up nearly all of the
    loss.
 4. The output range is rewarded linearly by default, as in the toolkit; Eq. 7 prints its square, under which the few
    images with the widest outputs run away (`output_power`).
 5. The moments stored for a batch are those of the pass of its last step, as in the toolkit; Algorithm 1 runs the
    network once more, lines 17 to 19 (`second_forward`).
 6. All batches share a learning-rate schedule, which steps once per iteration with their mean loss: the loss is global.
 7. Images are clipped to the range of pixels, as in the toolkit; the paper does not mention it. The image is quantized
    too, and a few impossible pixels would double the step size of its grid (`clip`).
 8. The 32 extra pixels at 224 are scaled with the size of the image (4 at 32 pixels, `extra_pixels`).
 9. There are the options of `dghlib.synthesis.options`, which are off by default.

Differences from the toolkit: statistics of a smaller last batch are weighted by its size; flips and crops are drawn per
image, not per batch (`augmentation`); lambda weighs the mean over all images (Eq. 7), not over the batch, so the
toolkit's value has to be multiplied by its number of batches; ranges of a detector's outputs are averaged over its
tensors, not summed, so a fixed lambda has to be multiplied by their number, too; the slack terms of Eq. 7 exist; the
pixel layer has the same weight as any other layer; the moments of a batch before its first step are those of augmented
images, as all later ones; images are larger by 1/7 (32 pixels at 224), not by 64 pixels; weights are frozen; there is
no half precision.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from dghlib.choices import check_at_least, check_between
from dghlib.generators import radam
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.schedules import PlateauWithReset
from dghlib.images import centre_crop, clip_straight_through, flip_and_crop, smooth
from dghlib.models import FloatModel
from dghlib.running import memory, processes
from dghlib.running.batchnorm import MomentBank, stored_statistics, working_copy
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint, folder_beside
from dghlib.storage.large_sets import LARGEST_IN_MEMORY, BatchedValues
from dghlib.storage.records import added_later
from dghlib.synthesis.matching import (
    Measurement,
    Reduction,
    Spread,
    channel_weights,
    measure,
    output_range,
    slack_penalty,
    with_pixels,
)
from dghlib.synthesis.options import MatchingOptions
from dghlib.synthesis.space import brought_over, working_twin

VERSION = 1

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Config(MatchingOptions):
    """Settings of a run; the defaults follow from the experiments in the lab notes.

    `scope`, `preprocessing` and `output_stretching` are the 3 parts of DGH in the paper (Table 4).
    """

    num_images: int = 1024  # images to make
    batch_size: int = 128  # images that are optimized together; does not affect the matching if scope is None
    steps: int = 1000  # sweeps over all batches
    learning_rate: float = 16.0  # of the images, at the start

    scope: int | None = None  # images whose statistics are matched together; None: all images (Eq. 4)
    spread: Spread = "std"  # the second statistic that is compared: "std" or "variance"
    reduction: Reduction = "mean"  # of squared differences over channels and layers: "mean" or "sum"
    relative: bool = added_later(True, before=False)  # distances in units of the spread of their layer
    match_pixels: bool = False  # the image itself as an additional layer, with mean 0 and variance 1
    second_forward: bool = False  # measure a batch again after its step (Algorithm 1, lines 17 to 19)

    preprocessing: bool = True  # smooth, flip, crop
    augmentation: Literal["image", "batch"] = "image"  # draw flip and crop for each image or for each batch
    extra_pixels: int | None = None  # by how many pixels images are larger than the crop; None: 1/7, even
    clip: bool = True  # to the range of 8-bit pixels, with straight-through gradients

    output_stretching: bool = True  # reward wide outputs
    # norm of the reward's gradient, as a share of the matching gradient's, at the last step; None: `output_weight`
    output_share: float | None = added_later(0.4, before=None)
    output_weight: float = 1e-5  # lambda if output_share is None
    output_power: Literal[1, 2] = 1  # of the output range: linear (the toolkit) or squared (Eq. 7)
    slack: float | None = None  # delta; None: no constraint at the last batch norm

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_images", "batch_size", "steps"):
            check_at_least(1, name, getattr(self, name))
        for name in ("learning_rate", "output_weight"):
            check_between(0, math.inf, name, getattr(self, name))
        if self.output_share is not None:
            check_between(0, 1, "output_share", self.output_share)
        if self.slack is not None:
            check_between(0, math.inf, "slack", self.slack)
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


SMOOTHING_SIGMA = 1.25  # of the 3x3 Gaussian, in pixels, as in the toolkit; the paper gives only the size

# Published settings. The toolkit's lambda is 1e-5 per batch, at the 8 batches of its documented runs.
# A fixed lambda was the default before output_share; experiments on single settings use it.
PRESETS = {
    "default": Config(),
    "fixed_weight": Config(relative=False, output_share=None, slack=1.0),
    "paper": Config(
        spread="variance",
        reduction="sum",
        relative=False,
        second_forward=True,
        clip=False,
        output_share=None,
        output_power=2,
        output_weight=1e-3,
        slack=1.0,
    ),
    "toolkit": Config(relative=False, match_pixels=True, augmentation="batch", output_share=None, output_weight=8e-5),
}


def generate(
    model: FloatModel,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    checkpoint: Path | None = None,
    compiled: bool = False,
) -> Tensor:
    """Return images (num_images, C, H, W), float32 in the normalised space of `model`, on the CPU.

    `dghlib.generators` describes the common arguments. With `checkpoint`, a killed run continues to the same images,
    or, if they are in files, to equally good images: batches of the interrupted sweep have already moved.
    With `compiled`, torch first compiles a copy of the network with a C++ compiler, which takes 1 or 2 minutes. For
    networks with light convolutions, such as MobileNets, a step on a CPU then takes 1/5 less time. If torch cannot
    compile the network, it warns and continues without, also for later compilations in this process.
    The processes of a job (`dghlib.running.processes`) share the work; each returns all images.

    Raises:
        FileNotFoundError: there is a checkpoint, but the folder of its images is missing.
        torch.OutOfMemoryError: a batch does not fit; raised before the first step if the system reports its free
        memory.
    """
    own, model = model, working_twin(model)
    saved = Checkpoint(checkpoint, f"{images_fingerprint(model, 'dgh', VERSION, config)} by batches")
    with _folder(model, config, checkpoint) as folder:
        state = saved.load()
        if state is None and folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if state is not None and folder is not None and not folder.exists():
            raise FileNotFoundError(f"{folder}, the images of {checkpoint}, is missing; delete that file to begin anew")
        run = _Run(model, config, device, folder)
        memory.check_batch(f"DGH on {model.name}", run.bytes_per_image(), max(run.sizes), device)
        run.make_room()
        if state is not None:
            run.restore(state)
        else:
            run.begin()
        if compiled:
            run.compile()
        bar = tqdm(total=config.steps, initial=run.step, desc=f"DGH {model.name}", disable=not progress)
        with bar, memory.told_when_out(f"DGH on {model.name}"):
            while run.step < config.steps:
                bns, odsl = run.advance()
                bar.update()
                rate = run.schedule.learning_rate
                bar.set_postfix_str(f"BNS {bns:.3g}, ODSL {odsl:.3g}, lr {rate:.3g}", refresh=False)
                saved.save_when_due(run.state)
        return brought_over(run.finished_images(), model, own)


@contextmanager
def _folder(model: FloatModel, config: Config, checkpoint: Path | None) -> Iterator[Path | None]:
    """Yield the folder for images and averages while they are optimized; None, in memory, unless they are large."""
    values = config.num_images * prod(_image_shape(model, config))
    if 4 * values <= LARGEST_IN_MEMORY:
        yield None
    elif checkpoint is not None:
        yield folder_beside(checkpoint) / str(processes.rank())
    else:
        with TemporaryDirectory(prefix="dgh-") as folder:
            yield Path(folder)


class _Run:
    """Everything that changes while images are generated.

    A process of a job owns every n-th batch of n processes, and all processes optimize a batch at the same time.
    """

    def __init__(self, model: FloatModel, config: Config, device: torch.device | str, folder: Path | None = None):
        self.model, self.config, self.folder = model, config, folder
        self.device = torch.device(device)
        self.net = working_copy(model.net, device, model.image_shape)
        self.layers = stored_statistics(self.net, model.image_shape)
        if config.match_pixels:
            self.layers = with_pixels(self.layers, model.image_shape[0])
        weights = channel_weights(self.layers.sizes, config.reduction, self.layers.mean.device)
        units = self.layers.units() if config.relative else None
        self.distance = config.distance_from(self.net, model.image_shape, self.layers, weights, config.spread, units)
        others = (processes.rank(),) if processes.count() > 1 else ()
        self.draws = stream(config.seed, "dgh", "augmentation", *others)
        self.step = 0

        self.sizes = [len(part) for part in torch.arange(config.num_images).split(config.batch_size)]
        self.own = range(processes.rank(), len(self.sizes), processes.count())
        self.weighed_every = min(10, max(1, config.steps // 8))  # sweeps between computations of lambda
        self.output_weight = 0.0 if config.output_share is not None else config.output_weight
        self.schedule = PlateauWithReset(config.learning_rate, patience=max(1, config.steps // 50))
        self.banks = self._banks()

    def make_room(self) -> None:
        """Make room for images and the averages of their gradients: those of an earlier run, or zeros."""
        begun, shape = self.folder is not None and self.folder.exists(), _image_shape(self.model, self.config)
        try:
            self.images, self.gradients, self.squares = (
                self._values(name, shape) for name in ("images", "gradients", "squares")
            )
        except OSError:
            if self.folder is not None and not begun:
                shutil.rmtree(self.folder)
                with suppress(OSError):  # other processes' are in there
                    self.folder.parent.rmdir()
            raise

    def _values(self, name: str, shape: Sequence[int]) -> BatchedValues:
        """Return space for values of all images of this process's batches."""
        sizes = [size if index in self.own else 0 for index, size in enumerate(self.sizes)]
        return BatchedValues(sizes, shape, self.folder and self.folder / name, self.device)

    def _banks(self) -> list[tuple[MomentBank, int]]:
        """Return, for every batch, its bank and its index there; as many batches share a bank as `scope` holds."""
        sizes = self.sizes
        if self.config.scope is not None and processes.count() > 1:
            raise ValueError(f"scope {self.config.scope} does not work with several processes; scope None does")
        scope = self.config.scope or self.config.num_images
        per_bank = max(1, scope // self.config.batch_size + bool(scope % self.config.batch_size))
        banks: list[tuple[MomentBank, int]] = []
        for start in range(0, len(sizes), per_bank):
            members = sizes[start : start + per_bank]
            own = [index for index in range(len(members)) if start + index in self.own]
            bank = MomentBank(members, len(self.layers.mean), self.layers.mean.device, own)
            banks += [(bank, index) for index in range(len(members))]
        return banks

    def bytes_per_image(self) -> int:
        """Return the bytes that are kept for the pass of an image until its gradient is computed."""
        image = torch.zeros(1, *self.model.image_shape, device=self.device, requires_grad=True)
        return memory.kept_for_gradients(self.net, lambda: measure(self.net, image, self.layers, 1))

    def begin(self) -> None:
        """Draw the images and measure all batches once: Algorithm 1, lines 1 to 6."""
        for index, batch in enumerate(_initial_batches(self.model, self.config, in_turn=self.folder is not None)):
            if index in self.own:
                self.images[index].copy_(batch)
        self._in_step(self.own, self._remeasure)

    def compile(self) -> None:
        """Let torch compile the network at its next pass; if it cannot, it warns, and the network stays as it is."""
        from torch._dynamo import config as compiler  # takes a second to import

        compiler.suppress_errors = True
        self.net.compile(dynamic=False)  # a smaller last batch gets code of its own, instead of slower code for all

    def advance(self) -> tuple[float, float]:
        """Move every batch by 1 step, and update the learning rate; return the mean BNS and ODSL losses."""
        bns, odsl = self._sweep()
        if not bns + odsl < float("inf"):
            raise FloatingPointError(f"the loss of DGH is {bns + odsl} after {self.step} steps; lower learning_rate")
        self.schedule.step(bns if self.config.output_share is not None else bns + self.output_weight * odsl)
        self.step += 1
        return bns, odsl

    def _sweep(self) -> tuple[float, float]:
        """Move every batch by 1 step, in random order; return the mean BNS and ODSL losses."""
        order = torch.randperm(len(self.own), generator=self.draws).tolist()
        losses = self._in_step([self.own[place] for place in order], self.move)
        total = torch.stack(losses).sum(0) if losses else torch.zeros(3, device=self.device)
        processes.add_up(total)
        bns, odsl, self.output_weight = (total / len(self.sizes)).tolist()
        return bns, odsl

    def _in_step(self, order: Sequence[int], work: Callable[[int], Result]) -> list[Result]:
        """Do work that ends in storing moments for each batch; store nothing while other processes have one more."""
        results = [work(index) for index in order]
        if len(order) < -(-len(self.sizes) // processes.count()):
            self.banks[0][0].store_nothing()
        return results

    def move(self, index: int) -> Tensor:
        """Move a batch by 1 step, Algorithm 1, lines 9 to 19; return its BNS and ODSL losses and lambda, (3,)."""
        config, images = self.config, self.images[index]
        batch = images.detach().to(self.device).requires_grad_()
        bank, row = self.banks[index]
        measured = self._measure(batch)
        # Groups smaller than a batch are independent: nothing else enters their statistics.
        alone = len(measured.moments) > 1
        joint = measured.moments if alone else bank.blend(row, measured.moments[0])
        bns = self._matching_loss(joint)
        odsl = self._stretching_loss(measured)
        gradient, weight = self._gradient(bns, bank.shares[row] * odsl, batch)
        averages = self.gradients[index], self.squares[index]
        radam.move(images, gradient.to(images.device), *averages, self.step + 1, self.schedule.learning_rate)
        if config.second_forward:
            self._remeasure(index)
        else:
            bank.store(row, measured.moments.mean(0))
        return torch.stack([bns.detach(), odsl.detach(), weight])

    def _gradient(self, bns: Tensor, odsl: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of BNS + lambda ODSL for the images of a batch, and lambda, which may change."""
        share = self.config.output_share if self.config.output_stretching else None
        if share is None or self.step % self.weighed_every:
            (gradient,) = torch.autograd.grad(bns + self.output_weight * odsl, batch)
            return gradient, bns.new_tensor(self.output_weight)
        (matching,) = torch.autograd.grad(bns, batch, retain_graph=True)
        (reward,) = torch.autograd.grad(odsl, batch)
        length = reward.norm()
        grown = share * self.step / self.config.steps
        weight = torch.where(length > 0, grown * matching.norm() / length, 0.0)
        return matching + weight * reward, weight

    def finished_images(self) -> Tensor:
        """Return all images in their final form: smoothed, cropped at the centre, filtered, clipped."""
        finished = BatchedValues(self.sizes, self.model.image_shape, self.folder and self.folder / "finished")
        for index, size in enumerate(self.sizes):
            made = self._finished(self.images[index].to(self.device)) if index in self.own else None
            if made is None:
                made = torch.empty(size, *self.model.image_shape, device=self.device)
            finished[index].copy_(processes.shared(made.contiguous(), owner=index % processes.count()))
        return finished.whole()

    def _finished(self, batch: Tensor) -> Tensor:
        if self.config.preprocessing:
            batch = centre_crop(smooth(batch, SMOOTHING_SIGMA), self.model.image_shape[1:])
        return self._clipped(self.config.filtered(batch))

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to continue bit for bit.

        Values in files are not part of it: batches that moved after the state was taken are then a step ahead.
        """
        values = (self.images, self.gradients, self.squares) if self.folder is None else ()
        return {
            "step": self.step,
            "values": [list(each.batches) for each in values],
            "schedule": self.schedule.state_dict(),
            "output_weight": self.output_weight,
            "banks": [bank.state_dict() for bank, row in self.banks if row == 0],
            "draws": self.draws.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.step = state["step"]
        for values, saved in zip((self.images, self.gradients, self.squares), state["values"], strict=False):
            for batch, known in zip(values.batches, saved, strict=True):
                batch.copy_(known)
        self.schedule.load_state_dict(state["schedule"])
        self.output_weight = state.get("output_weight", self.output_weight)  # not in checkpoints before output_share
        first_of_bank = [bank for bank, row in self.banks if row == 0]
        for bank, known in zip(first_of_bank, state["banks"], strict=True):
            bank.load_state_dict(known)
        self.draws.set_state(state["draws"])

    def _measure(self, batch: Tensor) -> Measurement:
        scope = self.config.scope
        groups = len(batch) // scope if scope is not None and scope < len(batch) else 1
        return measure(self.net, self._prepared(batch), self.layers, groups)

    @torch.no_grad()
    def _remeasure(self, index: int) -> None:
        bank, row = self.banks[index]
        bank.store(row, self._measure(self.images[index].to(self.device)).moments.mean(0))

    def _matching_loss(self, joint: Tensor) -> Tensor:
        """Return the distance of moments (groups, 2, K) to the running statistics, Eq. 4, averaged over the groups."""
        return self.distance(joint).mean()

    def _stretching_loss(self, measured: Measurement) -> Tensor:
        """Return the output-stretching loss of Eq. 7, averaged over the images."""
        if not self.config.output_stretching:
            return measured.moments.new_zeros(())
        loss = -(output_range(measured.output) ** self.config.output_power)
        if self.config.slack is not None:
            loss = loss + slack_penalty(measured.last_moments, self.layers, self.config.slack, self.config.spread)
        return loss.mean()

    def _prepared(self, batch: Tensor) -> Tensor:
        """Return the batch in the form that the network sees: smoothed, flipped, cropped (phi_prep of Algorithm 1)."""
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


def _image_shape(model: FloatModel, config: Config) -> tuple[int, int, int]:
    """Return the shape of an image during the optimization: larger than the network's input by the extra pixels."""
    channels, height, width = model.image_shape
    extra = (0, 0)
    if config.preprocessing:
        wanted = config.extra_pixels
        # 32 at 224 (the paper), in proportion for other sizes, and even, so that the centre is a whole pixel.
        extra = (2 * round(height / 14), 2 * round(width / 14)) if wanted is None else (wanted, wanted)
    return channels, height + extra[0], width + extra[1]


def _initial_batches(model: FloatModel, config: Config, *, in_turn: bool) -> Iterable[Tensor]:
    """Return standard Gaussian noise, drawn for all images at once or batch by batch."""
    draws, shape = stream(config.seed, "dgh", "images"), _image_shape(model, config)
    if not in_turn:
        return torch.randn(config.num_images, *shape, generator=draws).split(config.batch_size)
    parts = torch.arange(config.num_images).split(config.batch_size)
    return (torch.randn(len(part), *shape, generator=draws) for part in parts)
