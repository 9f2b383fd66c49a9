"""How much results vary by chance: with seeds, threads, processors, and the last bits of the images.

Threads and processors add numbers in other orders, which changes the last bits of sums; methods that learn for many
steps can end at other results. Runs of the embedded networks at the budget `quick` are repeated here. Each result is
saved with the published result of the same inputs, with the processor that computed it, and with the published results
of the other seeds, whose spread the tables show. Runs of the plan of all quantizers are also repeated

- with other numbers of threads, if several are given;
- with images whose last bits differ: times 1 + 1e-7 times noise;
- with the kernels of an older processor, which torch and oneDNN have for every x86 processor.

In addition, a sample of the published runs with DGH's images is repeated, with new images, whose records name another
processor than this one. `--epsilon` repeats runs with another epsilon of Adam for the roundings, and
saves them in a separate record.

From the repository's root: python -m benchmarks.chance --networks shapes_residual --elsewhere 8
"""

import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import measuring
from dghlib.bookmaking.holdings import held, plans_of
from dghlib.experiments import run
from dghlib.experiments.experiment import FLOAT, REAL, Experiment, width_of
from dghlib.experiments.profiles import PROFILES
from dghlib.experiments.scoring import quality
from dghlib.plans.methods import BLOCK_BY_BLOCK, quantizers
from dghlib.quantizers import QUANTIZERS
from dghlib.quantizers.starting import LearningSettings
from dghlib.storage.records import provenance

LAST_BITS = 1e-7  # of float32, relative
# Both are read at the first sum. Without AVX2, half as many sums are computed at once, without fused products.
OLDER_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX"}
_UNNAMED = "x86_64, x86_64"  # in old records, which do not name the processor
_MOST_SEEDS = 5


def planned(options: Any) -> list[Experiment]:
    """Return the runs that are repeated in several ways: those of the plan of all quantizers, with real images."""
    budget, seeds = ("smoke", 1) if options.smoke else ("quick", options.seeds)
    methods, bits, networks = options.methods, options.bits, options.networks
    if options.smoke:
        methods, bits, networks = methods[:2], bits[:1], networks[:1]
    chosen: dict[str, Any] = {"bits": bits, "methods": methods, "models": networks}
    if options.epsilon:
        chosen["rounding_epsilon"] = options.epsilon
    every = quantizers("shapes", budget, policies=["full"], sources=[REAL], seeds=seeds, **chosen)
    return [each for each in every if each.quantizer != FLOAT]


def made_elsewhere(count: int, methods: Sequence[str]) -> list[Experiment]:
    """Return a random sample of the published runs with DGH's images whose records name another processor than this."""
    published, here = run.Workshop(run.PUBLISHED), provenance(0)["machine"]
    every = dict.fromkeys(each for plan in plans_of("shapes") for each in held(plan, "shapes"))
    found = []
    for each in every:
        wanted = isinstance(each, Experiment) and each.quantizer in methods and each.source == "dgh"
        record = published.find(each) if wanted else None
        if record and other_processor(record["provenance"]["machine"], here):
            found.append(each)
    return random.Random(0).sample(found, min(count, len(found)))


def other_processor(machine: str, here: str) -> bool:
    """Return whether a record's machine names a processor, or kernels, that are not those of this machine."""
    processors = {text.rpartition(",")[0] for text in (machine, here)}  # without the number of threads
    return _UNNAMED not in machine and len(processors) == 2


def ways(threads: Sequence[int]) -> Iterator[tuple[str, int, float]]:
    """Yield what differs from the first way, the threads, and by how much images are moved."""
    yield "", threads[0], 0.0
    for count in threads[1:]:
        yield f"{count} threads", count, 0.0
    yield "last bits", threads[0], LAST_BITS
    yield "older kernels", threads[0], 0.0


def moved(images: Tensor, by: float) -> Tensor:
    """Return images times 1 + `by` times noise."""
    return images * (1 + by * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)))


def reached(experiment: Experiment, images: Tensor, threads: int) -> float:
    """Return the top-1 of an experiment with these images and so many threads."""
    model = run.load_model(experiment.model)
    torch.set_num_threads(threads)
    quantized = QUANTIZERS[experiment.quantizer].quantize(model, images, experiment.quantizer_config)
    return quality(experiment.profile, experiment.test_images, model, quantized)["top1"]


def published_facts(experiment: Experiment) -> dict[str, Any]:
    """Return the published top-1, the machine that computed it, and the top-1 of all seeds; None and [] if missing."""
    published = run.Workshop(run.PUBLISHED)
    record = published.find(experiment) or {"outputs": {}, "provenance": {}}
    of_seeds = [published.find(_with_seed(experiment, seed)) for seed in range(_MOST_SEEDS)]
    return {
        "recorded": record["outputs"].get("top1"),
        "recorded_on": record["provenance"].get("machine"),
        "seeds": [each["outputs"]["top1"] for each in of_seeds if each],
    }


def _with_seed(experiment: Experiment, seed: int) -> Experiment:
    config = experiment.quantizer_config
    if isinstance(config, LearningSettings):
        config = replace(config, seed=seed)
    images = replace(experiment.source_config, seed=seed)
    return replace(experiment, source_config=images, quantizer_config=config)


def older_kernels() -> ProcessPoolExecutor:
    """Return a process in which torch and oneDNN have older kernels."""
    before = os.environ.copy()
    os.environ.update(OLDER_KERNELS)
    try:
        process = ProcessPoolExecutor(1, get_context("spawn"))
        process.submit(os.getpid).result()  # the process has started, with this environment
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument(
        "--networks", nargs="+", default=list(PROFILES["shapes"].models), help="networks of the profile shapes"
    )
    parser.add_argument("--methods", nargs="+", default=BLOCK_BY_BLOCK, choices=BLOCK_BY_BLOCK)
    parser.add_argument("--bits", nargs="+", default=["W4A4", "W2A4"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1], help="numbers of threads; the others are compared with the first"
    )
    parser.add_argument("--elsewhere", type=int, default=0, help="published runs of another processor, at random")
    parser.add_argument("--epsilon", type=float, help="rounding_epsilon of the methods that learn, if not the default")
    options = parser.parse_args(arguments)
    name = "chance_epsilon" if options.epsilon else "chance"
    measuring.prepare(options)
    start, rows = time.perf_counter(), []
    every = [(each, ("", options.threads[0], 0.0)) for each in made_elsewhere(options.elsewhere, options.methods)]
    every += [(each, way) for each in planned(options) for way in ways(options.threads)]
    inputs = {"threads": options.threads, "last_bits": LAST_BITS, "older_kernels": OLDER_KERNELS}
    inputs |= {"epsilon": options.epsilon} if options.epsilon else {}
    with TemporaryDirectory() as folder, older_kernels() as older:
        workshop = run.Workshop(Path(folder) / "results")
        for experiment, (differs, threads, by) in tqdm(every, desc="runs"):
            images = moved(workshop.images(experiment)[0], by)
            work = experiment, images, threads
            row = {
                "run": experiment.title,
                "network": experiment.model,
                "method": experiment.quantizer,
                "bits": width_of(experiment.quantizer_config),
                "source": experiment.source,
                "seed": experiment.seed,
                "differs": differs,
                "top1": older.submit(reached, *work).result() if differs == "older kernels" else reached(*work),
                **published_facts(experiment),
            }
            print(*row.values(), flush=True)
            rows.append(row)
            # A stopped run of hours keeps its rows.
            measuring.save(options, name, inputs, rows, time.perf_counter() - start)
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
