"""Whether a student that is fine-tuned diverges from its teacher."""

_SMOOTHING = 0.9  # of the loss of single minibatches
_DIVERGED = 2.0  # times the loss at the start
_LOST = 0.25  # of the loss of a student with equal logits; a student below this has not diverged


class Diverged(FloatingPointError):
    """A student is farther from its teacher than it can be while it learns."""


class Watch:
    """Detects a student that diverges, by its distillation.

    Args:
        before: the student's distillation at the start.
        ignorance: the distillation of a student with equal logits.
    """

    def __init__(self, before: float, ignorance: float):
        self.start, self.ignorance = before, ignorance
        self.smooth: float | None = None

    def add(self, loss: float, step: int, rate: float) -> None:
        """Process the loss of a step, from 0.

        Raises:
            Diverged: the loss is NaN, or has grown too far.
        """
        if self.smooth is None:
            self.smooth, self.start = loss, max(self.start, loss)
        self.smooth = _SMOOTHING * self.smooth + (1 - _SMOOTHING) * loss
        self.check(self.smooth, step + 1, rate)

    def check(self, loss: float, step: int, rate: float | None) -> None:
        """Raise Diverged if this loss, at this step, is that of a student that has diverged."""
        limit = max(_DIVERGED * self.start, _LOST * self.ignorance)
        if not loss <= limit:  # also for NaN
            raise Diverged(
                f"the student diverges: at step {step} its distillation is {loss:.4g}, which began at {self.start:.4g} "
                f"and is {self.ignorance:.4g} for equal logits. Take a smaller rate than {rate:.2g}"
            )
