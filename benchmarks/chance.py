"""How far results lie apart by chance: other seeds, other numbers of threads, the last bits of the images.

Threads and processors add numbers up in other orders, which moves the last bits of sums; what learns for many steps may
end elsewhere. Real images of the embedded networks, at the budget `quick`, are quantized again for every seed: with
each number of threads, and on the first of them once more with images whose last bits differ (times 1 + 1e-7 times
noise), as another processor would have them. Beside each result stands the record of the same inputs that came with
the repository, of whatever processor made it.

From the repository's root: python -m benchmarks.chance --seeds 3 --methods hptq brecq --bits W4A4 W2A4
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import measuring
from dghlib.experiments import run
from dghlib.experiments.experiment import FLOAT, REAL, Experiment, width_of
from dghlib.experiments.scoring import quality
from dghlib.plans.methods import BLOCK_BY_BLOCK, quantizers
from dghlib.quantizers import QUANTIZERS

LAST_BITS = 1e-7  # of float32, relative


def planned(options: Any) -> list[Experiment]:
    """Return the runs that are repeated: those of the plan of all quantizers."""
    budget, seeds = ("smoke", 1) if options.smoke else ("quick", options.seeds)
    bits = options.bits[:1] if options.smoke else options.bits
    chosen = {"bits": bits, "methods": options.methods, "models": options.networks}
    every = quantizers("shapes", budget, policies=["full"], sources=[REAL], seeds=seeds, **chosen)
    return [each for each in every if each.quantizer != FLOAT]


def ways(threads: Sequence[int]) -> Iterator[tuple[str, int, float]]:
    """Yield what differs from the first way, the threads, and by how much images are moved."""
    yield "", threads[0], 0.0
    for count in threads[1:]:
        yield f"{count} threads", count, 0.0
    yield "last bits", threads[0], LAST_BITS


def moved(images: Tensor, by: float) -> Tensor:
    """Return images times 1 + `by` times noise."""
    return images * (1 + by * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)))


def reached(experiment: Experiment, images: Tensor, threads: int) -> float:
    """Return the top-1 of an experiment with these images and so many threads."""
    model = run.load_model(experiment.model)
    torch.set_num_threads(threads)
    quantized = QUANTIZERS[experiment.quantizer].quantize(model, images, experiment.quantizer_config)
    return quality(experiment.profile, experiment.test_images, model, quantized)["top1"]


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=["shapes_residual"], help="of the profile shapes")
    parser.add_argument("--methods", nargs="+", default=["hptq", "brecq"], choices=BLOCK_BY_BLOCK)
    parser.add_argument("--bits", nargs="+", default=["W4A4", "W2A4"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="the first are those compared with")
    options = parser.parse_args(arguments)
    measuring.prepare(options)
    start, rows = time.perf_counter(), []
    published = run.Workshop(run.PUBLISHED)
    with TemporaryDirectory() as folder:
        workshop = run.Workshop(Path(folder))
        every = [(each, way) for each in planned(options) for way in ways(options.threads)]
        for experiment, (differs, threads, by) in tqdm(every, desc="runs"):
            record = published.find(experiment) or {"outputs": {}, "provenance": {}}
            row = {
                "network": experiment.model,
                "method": experiment.quantizer,
                "bits": width_of(experiment.quantizer_config),
                "seed": experiment.seed,
                "differs": differs,
                "top1": reached(experiment, moved(workshop.images(experiment)[0], by), threads),
                "recorded": record["outputs"].get("top1"),
                "recorded_on": record["provenance"].get("machine"),
            }
            print(*row.values(), flush=True)
            rows.append(row)
    torch.set_num_threads(1)
    inputs = {"threads": options.threads, "last_bits": LAST_BITS}
    measuring.save(options, "chance", inputs, rows, time.perf_counter() - start)


if __name__ == "__main__":
    main()
