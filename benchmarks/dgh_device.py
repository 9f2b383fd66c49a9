"""How long DGH takes on a device, as the paper reports it: 1024 images of 224 pixels, 1000 steps, from start to end.

Beside it, the limit of the device: forward and backward passes of the bare network to its input, in channels_last,
for about a tenth of the steps, before and after. The toolkit is not needed.

From the repository's root, minutes on a large GPU: python -m benchmarks.dgh_device --device cuda
On a CPU, with small settings: python -m benchmarks.dgh_device --device cpu --networks resnet18 --size 32 --images 64
--steps 4
"""

import platform
import resource
import time
from dataclasses import dataclass

import torch

from benchmarks import measuring
from benchmarks.dgh import bare_run
from benchmarks.measuring import settled, timed
from dghlib.generators import dgh
from dghlib.models import FloatModel


@dataclass(frozen=True)
class Generation:
    """One whole generation: wall seconds, images x steps per second, ratio to the bare network, memory."""

    network: str
    seconds: float
    per_second: float
    of_bare: float
    peak_mb: float  # of the device, or of the process if the device is the CPU


def generation(model: FloatModel, config: dgh.Config, device: str, compiled: bool) -> Generation:
    """Generate images and measure the whole run, with compilation."""
    batches = -(-config.num_images // config.batch_size)
    bare = bare_run(model, config.batch_size, batches=batches, device=device)
    bare(1)  # without the extra time of the first run
    steps = max(1, config.steps // 20)
    before = bare(steps).wall / steps
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def run() -> None:
        dgh.generate(model, config, device=device, compiled=compiled)
        settled(device)

    seconds = timed(run).wall
    peak = peak_mb(device)
    bare_step = (before + bare(steps).wall / steps) / 2
    return Generation(
        network=model.name,
        seconds=seconds,
        per_second=config.num_images * config.steps / seconds,
        of_bare=bare_step * config.steps / seconds,
        peak_mb=peak,
    )


def peak_mb(device: str) -> float:
    """Return the peak memory in MB."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"], help="torchvision's")
    parser.add_argument("--size", type=int, default=224, help="size of the images in pixels")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--compile", action="store_true", help="let torch compile the networks first")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.device, options.networks, options.size = "cpu", ["mobilenet_v2"], 32
        options.images, options.batch_size, options.steps = 4, 2, 1
    measuring.prepare(options)
    start = time.perf_counter()
    config = dgh.Config(num_images=options.images, batch_size=options.batch_size, steps=options.steps)
    print(f"{'network':16}{'seconds':>10}{'images x steps / s':>20}{'of bare':>10}{'peak MB':>10}")
    found = []
    for name in options.networks:
        result = generation(measuring.network(name, options.size), config, options.device, options.compile)
        print(f"{name:16}{result.seconds:10.1f}{result.per_second:20.0f}{result.of_bare:10.2f}{result.peak_mb:10.0f}")
        found.append(result)
    is_cuda = torch.device(options.device).type == "cuda"
    inputs = {"device": torch.cuda.get_device_name() if is_cuda else platform.machine(), "image_size": options.size}
    inputs |= {"num_images": options.images, "batch_size": options.batch_size, "steps": options.steps}
    inputs |= {"compiled": options.compile}
    measuring.save(options, "dgh_device", inputs, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
