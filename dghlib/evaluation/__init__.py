"""The accuracy of a network, in percent."""

from dghlib.evaluation.classification import agreement, top1
from dghlib.evaluation.detection import found_boxes, mean_average_precision

__all__ = ["agreement", "found_boxes", "mean_average_precision", "top1"]
