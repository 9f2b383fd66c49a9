"""What is left of a network's quality, in percent."""

from dghlib.evaluation.classification import top1

__all__ = ["top1"]
