"""The inputs and outputs of a unit for all calibration images: computed once, kept, and read in minibatches."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dghlib.quantizers.graph import device_of
from dghlib.quantizers.learners import coins
from dghlib.quantizers.units import piece_of
from dghlib.storage.large_sets import reserve

STORES = ("device", "cpu", "disk")


class Frontier:
    """The position of the calibration images in a graph: a tensor for all images, moved from unit to unit.

    Args:
        graph: the graph that the images pass.
        images: (N, C, H, W).
        store: where tensors are kept: the graph's "device", "cpu", or memory-mapped on "disk".
        batch_size: images that pass at once.
    """

    def __init__(self, graph: fx.GraphModule, images: Tensor, store: str, batch_size: int):
        self.graph, self.images, self.store, self.batch_size = graph, images, store, batch_size
        self._node, self._values = next(iter(graph.graph.nodes)), images

    def at(self, node: fx.Node) -> Tensor:
        """Return the values (N, ...) of a node, computed from the last position of the images, or else anew."""
        if node is not self._node:
            try:
                piece, values = piece_of(self.graph, self._node, node), self._values
            except ValueError:
                piece, values = piece_of(self.graph, next(iter(self.graph.graph.nodes)), node), self.images
            self._node, self._values = node, self._pass(piece, values)
        return self._values

    @torch.no_grad()
    def _pass(self, piece: fx.GraphModule, values: Tensor) -> Tensor:
        device = device_of(self.graph)
        kept = None
        for start in range(0, len(values), self.batch_size):
            result = piece(values[start : start + self.batch_size].to(device))
            if kept is None:
                place = device if self.store == "device" else torch.device("cpu")
                kept = _empty((len(values), *result.shape[1:]), place, on_disk=self.store == "disk")
            kept[start : start + len(result)] = result
        assert kept is not None
        return kept


def _empty(shape: Sequence[int], device: torch.device, on_disk: bool) -> Tensor:
    """Return a tensor of that shape, images in channels_last; on disk it uses no memory except the system's cache."""
    stored = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else tuple(shape)
    if on_disk:
        with tempfile.NamedTemporaryFile(prefix="dghlib-") as file:  # the mapping outlives the name
            size = torch.Size(stored).numel()
            reserve(Path(file.name), size * torch.float32.itemsize)
            values = torch.from_file(file.name, shared=True, size=size, dtype=torch.float32).view(stored)
    else:
        values = torch.empty(stored, device=device)
    return values.permute(0, 3, 1, 2) if len(shape) == 4 else values


@dataclass
class UnitData:
    """The training data of a unit.

    Attributes:
        float_inputs, inputs: its inputs (N, ...) in the float network and in the network quantized so far; one of them
            may be None.
        targets: its float outputs (N, ...).
        keep_float: if there are both inputs, the probability with which a value is the float one.
        generator, coins: draw minibatches, and the values that are float; `coins` is on the device.
        importance: the weight of every value of the targets, or None for equal weights.
    """

    float_inputs: Tensor | None
    inputs: Tensor | None
    targets: Tensor
    keep_float: float
    generator: torch.Generator
    coins: torch.Generator
    device: torch.device
    batch_size: int
    importance: Tensor | None = None

    def minibatches(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield (inputs, targets, importance) of randomly drawn images, without end."""
        for rows in drawn_rows(len(self.targets), self.batch_size, self.generator):
            weights = None if self.importance is None else self._rows(self.importance, rows)
            yield self._inputs(rows, self.keep_float), self._rows(self.targets, rows), weights

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, targets) of all images, once; inputs are those of the quantized network if there are any."""
        for rows in torch.arange(len(self.targets)).split(self.batch_size):
            yield self._inputs(rows, 0.0), self._rows(self.targets, rows)

    def _inputs(self, rows: Tensor, keep_float: float) -> Tensor:
        if self.inputs is None or self.float_inputs is None:
            (values,) = (values for values in (self.inputs, self.float_inputs) if values is not None)
            return self._rows(values, rows)
        quantized = self._rows(self.inputs, rows)
        if keep_float == 0:
            return quantized
        return torch.lerp(quantized, self._rows(self.float_inputs, rows), coins(quantized, keep_float, self.coins))

    def _rows(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return some rows on the device, images in channels_last."""
        rows = rows.to(values.device)
        if values.ndim != 4:
            return values[rows].to(self.device)
        return values.permute(0, 2, 3, 1)[rows].to(self.device).permute(0, 3, 1, 2)


def drawn_rows(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield indices (min(size, count),) without end, such that all images are drawn equally often."""
    size = min(size, count)
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def unit_error(output: Tensor, target: Tensor, power: float = 2.0, importance: Tensor | None = None) -> Tensor:
    """Return the error summed over channels and averaged over images and positions, as all reconstruction papers do."""
    difference = output - target
    error = difference.square() if power == 2 else difference.abs().pow(power)
    if importance is not None:
        error = error * importance
    return error.sum(1).mean()


@torch.no_grad()
def relative_error(piece: fx.GraphModule, data: UnitData) -> float:
    """Return the energy of a unit's error relative to that of its float output, over all images."""
    error = energy = 0.0
    for inputs, targets in data.in_order():
        error += (piece(inputs) - targets).square().sum().item()
        energy += targets.square().sum().item()
    return error / energy if energy else 0.0


def output_importance(piece: fx.GraphModule, rest: fx.GraphModule, data: UnitData) -> Tensor:
    """Return the dependence of the network's output on every value of a unit's output: its squared gradient.

    The gradient is that of the divergence KL(float output || output), where `rest`, the float network after the unit,
    processes the unit's output. It is scaled to a mean of 1, so that errors stay comparable to the rounding penalty.
    """
    squares = []
    for inputs, targets in data.in_order():
        with torch.no_grad():
            output = piece(inputs)
            wanted = rest(targets).log_softmax(-1)
        output = output.detach().requires_grad_()
        loss = F.kl_div(rest(output).log_softmax(-1), wanted, log_target=True, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, output)
        squares.append(gradient.square())
    total = torch.cat(squares)
    return total / total.mean().clamp(min=torch.finfo(total.dtype).tiny)
