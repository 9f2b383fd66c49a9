"""Learning-rate schedules of the generators that torch does not have."""

from math import inf


def in_proportion(length: int, steps: int, whole: int) -> int:
    """Return an interval of a schedule, `length` of `whole` steps, scaled to a run of `steps`: at least 1 step."""
    return max(1, round(length * steps / whole))


class PlateauWithReset:
    """Halve the learning rate when the loss stops falling, then forget the best loss.

    As in the code of DGH's authors (model-compression-toolkit 2.6.1), the best loss is reset after each reduction.
    Otherwise a single low value at the start would count against all later values. Unlike in that code, an improvement
    is measured relative to the size of the best loss, so that negative losses (stretched outputs) work too.

    Args:
        learning_rate: the initial learning rate.
        patience: steps without improvement before a reduction.
        factor: of each reduction.
        minimum: the smallest learning rate.
        threshold: smallest relative change that counts as an improvement.
    """

    def __init__(
        self,
        learning_rate: float,
        *,
        patience: int,
        factor: float = 0.5,
        minimum: float = 1e-4,
        threshold: float = 1e-4,
    ):
        self.learning_rate = learning_rate
        self.patience, self.factor, self.minimum, self.threshold = patience, factor, minimum, threshold
        self.best = inf
        self.bad_steps = 0

    def step(self, loss: float) -> None:
        """Process the loss of a step."""
        if self.best == inf or loss < self.best - self.threshold * abs(self.best):
            self.best, self.bad_steps = loss, 0
            return
        self.bad_steps += 1
        if self.bad_steps > self.patience:
            self.learning_rate = max(self.minimum, self.learning_rate * self.factor)
            self.best, self.bad_steps = inf, 0

    def state_dict(self) -> dict[str, float | int]:
        """Return the state, for a checkpoint."""
        return {"learning_rate": self.learning_rate, "best": self.best, "bad_steps": self.bad_steps}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Restore a `state_dict`."""
        self.learning_rate, self.best = float(state["learning_rate"]), float(state["best"])
        self.bad_steps = int(state["bad_steps"])
