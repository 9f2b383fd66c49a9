"""Options of the methods that match batch-norm statistics: another distance, a slack, and a filter.

They are settings of ZeroQ, IntraQ, GENIE-D and DGH. The defaults change nothing.

Sources: M. Haroush et al., "The Knowledge Within: Methods for Data-Free Model Compression", CVPR 2020 (KW,
`statistics_distance`); X. Zhang et al., "Diversifying Sample Generation for Accurate Data-Free Quantization", CVPR 2021
(DSG, `statistics_slack`); M. Kim et al., "SynQ: Accurate Zero-shot Quantization by Synthesis-aware Fine-tuning", ICLR
2025 (SynQ, `low_pass`).

Differences from the papers:
 1. DSG's values of the slack are not in its code. As the paper describes, the slack of a layer is a quantile of the
    errors of Gaussian noise, for means and for standard deviations (or variances) by themselves. The noise is measured
    as one batch for all methods; ZeroQ and DSG compare the statistics of single images.
 2. DSG's other parts, which double the loss of a layer for some images, are not built.
 3. KW has no code. The divergence is weighted as the method weights squared errors. It has no unit, so DGH's `relative`
    hardly matters to it, and it always compares standard deviations, whatever `spread` is.
 4. SynQ filters the images of each step of its fine-tuning. Here finished images are filtered once, for any quantizer.
    A channel of a filtered image is clipped to the range that it had before, because the filter overshoots at edges.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dghlib.choices import check_between, check_types
from dghlib.images import low_pass
from dghlib.running.batchnorm import StoredStatistics
from dghlib.seeds import stream
from dghlib.storage.records import added_later
from dghlib.synthesis.matching import Spread, batch_norm_distance, errors_of_noise, measure

NOISE_IMAGES = 32  # Gaussian images whose errors determine the slack


@dataclass(frozen=True, kw_only=True)
class MatchingOptions:
    """Settings that the Config of every method with squared distances of statistics inherits."""

    seed: int = 0  # of all random numbers
    # distance of statistics: "squared" errors, or KW's "gaussian" divergence
    statistics_distance: Literal["squared", "gaussian"] = added_later("squared")
    # DSG: quantile of the errors of Gaussian noise in a layer, up to which an error is no loss; 0: every error is
    statistics_slack: float = added_later(0.0)
    # SynQ: radius of a Gaussian filter on the finished images, in periods per image; 0 for none
    low_pass: float = added_later(0.0)

    def __post_init__(self) -> None:
        check_types(self)
        check_between(0, 1, "statistics_slack", self.statistics_slack)
        if self.low_pass:
            check_between(0.1, math.inf, "low_pass, unless it is 0,", self.low_pass)

    def distance_from(
        self,
        net: nn.Module,
        image_shape: tuple[int, int, int],
        layers: StoredStatistics,
        weights: Tensor,
        spread: Spread,
        units: Tensor | None = None,
    ) -> Callable[[Tensor], Tensor]:
        """Return the function from moments (..., 2, K) at the `layers` of `net` to their distance (...).

        `weights` and `spread` are those of `matching.batch_norm_distance`. Distances are in `units` (2, K), None for
        statistics as they are. A slack needs a pass of noise of `image_shape` (C, H, W).
        """
        compared: Spread = "std" if self.statistics_distance == "gaussian" else spread
        known = layers if units is None else layers.divided_by(units)

        def scaled(moments: Tensor) -> Tensor:
            return moments if units is None else moments / units

        slack = None
        if self.statistics_slack:
            draws = stream(self.seed, "statistics_slack")
            noise = torch.randn(NOISE_IMAGES, *image_shape, generator=draws).to(layers.mean.device)
            with torch.no_grad():
                measured = scaled(measure(net, noise, layers).moments[0])
            slack = errors_of_noise(measured, known, compared, self.statistics_slack)
        return lambda moments: batch_norm_distance(
            scaled(moments), known, weights, compared, distance=self.statistics_distance, slack=slack
        )

    def filtered(self, images: Tensor) -> Tensor:
        """Return finished images (N, C, H, W) after the low-pass filter; no channel leaves its range."""
        if not self.low_pass:
            return images
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        return low_pass(images, self.low_pass).clamp(low, high)
