"""The loop of the methods that compute a set of images after another: its steps, its checkpoint, its progress bar.

A *task* makes one set (an independent batch, or all images of a generator network). Tasks run in sequence and may use
the images of earlier tasks.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from dghlib.running.memory import told_when_out
from dghlib.storage.checkpoints import Checkpoint


class Task(Protocol):
    """A set of images in progress."""

    parts: dict[str, Any]  # the whole state: tensors, random streams, objects with a `state_dict`

    def step(self) -> dict[str, float]:
        """Update the images by 1 step; return the terms of the loss, which sum to it."""

    def images(self) -> Tensor:
        """Return the current images (n, C, H, W)."""


class ImageTask:
    """Images that an optimizer updates to minimise a loss.

    Args:
        images: initial images, (n, C, H, W).
        loss: images -> the terms of their loss, which sum to it.
        optimizer: makes the optimizer of the images; schedule: makes its schedule.
        draws: the random stream of `loss`, if it uses one.
        keep_valid: images -> the nearest valid images, applied after each step.
    """

    def __init__(
        self,
        images: Tensor,
        loss: Callable[[Tensor], dict[str, Tensor]],
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer], LRScheduler],
        *,
        draws: torch.Generator | None = None,
        keep_valid: Callable[[Tensor], Tensor] | None = None,
    ):
        self.leaf = images.clone().requires_grad_()
        self.loss = loss
        self.optimizer = optimizer([self.leaf])
        self.schedule = schedule(self.optimizer)
        self.keep_valid = keep_valid
        self.parts: dict[str, Any] = {"images": self.leaf, "optimizer": self.optimizer, "schedule": self.schedule}
        if draws is not None:
            self.parts["draws"] = draws

    def step(self) -> dict[str, float]:
        """Update the images by 1 step, see `Task`."""
        terms = self.loss(self.leaf)
        values = values_of(terms)
        (self.leaf.grad,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), self.leaf)
        self.optimizer.step()
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(sum(values.values()))
        else:
            self.schedule.step()
        if self.keep_valid is not None:
            with torch.no_grad():
                self.leaf.copy_(self.keep_valid(self.leaf))
        return values

    def images(self) -> Tensor:
        """Return the current images."""
        return self.leaf.detach()


def values_of(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the terms of a loss as numbers, with a single transfer from the device."""
    return dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))


def run_tasks(
    start: Callable[[int, list[Tensor]], Task],
    *,
    count: int,
    steps: int,
    saved: Checkpoint,
    title: str,
    progress: bool,
) -> Tensor:
    """Return the images of `count` tasks of `steps` steps each, (N, C, H, W) on the CPU.

    `start` receives the index of a task and the images of the earlier tasks, and returns that task at its beginning.
    A killed run continues from `saved`. `title` stands before the progress bar and in errors.

    Raises:
        FloatingPointError: a loss became NaN or infinite; the step is named.
        torch.OutOfMemoryError: a batch does not fit on the device.
    """
    state = saved.load() or {"finished": [], "step": 0, "task": None}
    finished: list[Tensor] = state["finished"]
    done = len(finished) * steps + state["step"]
    with tqdm(total=count * steps, initial=done, desc=title, disable=not progress) as bar:
        while len(finished) < count:
            task = start(len(finished), finished)
            if state["task"] is not None:
                _restore(task.parts, state["task"])
            for step in range(state["step"], steps):
                _show(bar, _checked_step(task, title, step))
                saved.save_when_due(lambda: _state(finished, step + 1, task))  # noqa: B023
            finished.append(task.images().cpu())
            state = {"step": 0, "task": None}
    return torch.cat(finished)


def _checked_step(task: Task, title: str, step: int) -> dict[str, float]:
    try:
        with told_when_out(title):
            terms = task.step()
    except RuntimeError as error:
        if "without overflow" not in str(error):  # torch's word for a number that is too large for float32
            raise
        raise FloatingPointError(
            f"the step of {title} overflows after {step} steps; lower the learning rate"
        ) from error
    if not abs(sum(terms.values())) < float("inf"):
        raise FloatingPointError(f"the loss of {title} is {terms} after {step} steps; lower the learning rate")
    return terms


def _show(bar: tqdm, terms: Mapping[str, float]) -> None:
    bar.update()
    bar.set_postfix_str(", ".join(f"{name} {value:.3g}" for name, value in terms.items()), refresh=False)


def _state(finished: list[Tensor], step: int, task: Task) -> dict[str, Any]:
    """Return the state from which a run continues bit for bit."""
    return {"finished": finished, "step": step, "task": {name: _saved(part) for name, part in task.parts.items()}}


def _saved(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.detach()
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _restore(parts: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Put every part back into its saved state."""
    for name, part in parts.items():
        if isinstance(part, Tensor):
            with torch.no_grad():
                part.copy_(saved[name])
        elif isinstance(part, torch.Generator):
            part.set_state(saved[name])
        else:
            part.load_state_dict(saved[name])
