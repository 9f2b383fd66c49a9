"""How many architectures of torchvision and timm are traced, quantized, exported, run, and equal to their simulation.

Every architecture that has a batch norm gets random weights, and the batch-norm statistics of 1 pass in train mode, at
the smallest of a few image sizes that it takes. HPTQ at 8 bits is calibrated with noise. Then onnxruntime runs the ONNX
file with its default settings, and its outputs are compared with those of the simulation, bit for bit. Each
architecture has its own process, with limits of time and memory. Its outcome lists the stages that it passed and, if a
stage failed, the message.

All classifiers and segmentation networks of torchvision are tried. Of timm, which has more than 1000 networks, those of
OF_TIMM are tried, or all whose names contain a word: `timm:mobilenet`. Each outcome is saved at once, with the commit
of the code. A sweep that was killed continues where it stopped; with --again, it also tries again what failed, with the
current code.

From the repository's root: python -m benchmarks.architectures torchvision timm --save
"""

import contextlib
import json
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from benchmarks import measuring
from dghlib.export import export_onnx, open_session
from dghlib.models import FloatModel
from dghlib.quantizers import QuantizedModel, hptq
from dghlib.quantizers.graph import folded_graph, left_in_float
from dghlib.storage.records import code_version, write_atomically

SEGMENTATION = torchvision.models.list_models(module=torchvision.models.segmentation)
STAGES = ("traced", "quantized", "exported", "ran", "equal")
SIZES = (64, 96, 128, 224, 256, 299, 384)  # in pixels; the first size that an architecture takes is used
# From timm: the smallest network of each family that has batch norm, and of large families one of each kind.
OF_TIMM = """
    botnet26t_256 eca_halonext26ts lambda_resnet26t sehalonet33ts bat_resnext26ts eca_resnext26ts gcresnext26ts
    gernet_s mobileone_s0 regnetz_b16 repvgg_a0 resnet32ts coat_lite_tiny convmixer_768_32 cpubone_nano csatv2
    cs3darknet_s cspresnet50 darknet17 sedarknet21 cspnext_tiny densenetblur121d dla34 dla46_c dpn48b
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_lite0 efficientnet_es
    efficientnet_cc_b0_4e fbnetc_100 mixnet_s mnasnet_small mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv2_050
    semnasnet_050 spnasnet_100 tf_efficientnet_b0 tf_efficientnetv2_b0 tinynet_e efficientvim_m1 efficientvit_b0
    efficientvit_m0 fasternet_t0 fastvit_t8 ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnet_tiny
    hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4
    lcnetv2_small levit_128s levit_conv_128s lowformer_b0 coatnet_pico_rw_224 maxvit_pico_rw_256 fbnetv3_b lcnet_050
    mobilenetv3_small_050 mobilenetv3_large_100 mobilenetv4_conv_small mobilenetv4_hybrid_medium_075 mobilevit_xxs
    mobilevitv2_050 nasnetalarge nextvit_small regnetv_040 regnetx_002 regnety_002 regnetz_005 repghostnet_050
    repvit_m0_9 res2net50_14w_8s resnest14d resnet10t ecaresnet26t resnetblur18 resnetrs50 seresnet18 resnetv2_18
    rexnet_100 rexnetr_100 selecsls42 legacy_seresnet18 shvit_s1 skresnet18 starnet_s050 swiftformer_xs
    tiny_vit_5m_224 tresnet_m vgg11_bn visformer_tiny vit_small_resnet26d_224 volo_d1_224 ese_vovnet19b_slim_dw
    legacy_xception xception41 xcit_nano_12_p16_224
"""
_SECONDS, _BYTES = 300, 8 * 2**30
DONE = Path("_build/architectures.jsonl")


@dataclass(frozen=True)
class Outcome:
    """How far an architecture got.

    Attributes:
        name: library and architecture, `torchvision:resnet18`.
        image_size: side in pixels.
        stages: the stages that it passed, in the order of STAGES; the next one failed.
        failure: the message of the stage that failed, in 1 line; empty if none failed.
        in_float: number of weights that belong to no layer, so that they stay in float.
        batch_norm: whether it has batch norms; if not, nothing else was tried.
        seconds: wall time of its process.
        commit: commit of the code that tried it.
    """

    name: str
    image_size: int
    stages: tuple[str, ...]
    failure: str
    in_float: int
    batch_norm: bool = True
    seconds: float = 0.0
    commit: str = ""

    @property
    def failed(self) -> bool:
        """Whether a stage failed."""
        return self.failure != ""


def names_of(library: str) -> list[str]:
    """Return a library's image classifiers and segmentation networks whose names contain the text after a colon."""
    library, _, part = library.partition(":")
    if library == "torchvision":
        names = torchvision.models.list_models(module=torchvision.models) + SEGMENTATION
    else:
        import timm

        names = timm.list_models() if part else OF_TIMM.split()
    return [f"{library}:{name}" for name in names if part in name]


def has_batch_norm(net: nn.Module) -> bool:
    """Return whether a network has a batch norm."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


def network(name: str) -> nn.Module:
    """Return an architecture with random weights, the same in every call."""
    library, _, architecture = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        untrained = {"weights_backbone": None} if architecture in SEGMENTATION else {}
        return torchvision.models.get_model(architecture, weights=None, **untrained)
    import timm

    return timm.create_model(architecture)


def fitted(net: nn.Module) -> int:
    """Give batch norms the statistics of noise, at the smallest size that the network takes; return the size in pixels.

    Raises:
        ValueError: the network takes no size of SIZES.
    """
    for norm in (module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)):
        norm.momentum = 1.0
    for size in SIZES:
        with contextlib.suppress(Exception), torch.no_grad():
            net.train()(measuring.smooth_images(8, size))
            net.eval()(measuring.smooth_images(2, size))
            return size
    raise ValueError(f"it takes images of none of the sizes {SIZES}")


def outcome(name: str) -> Outcome:
    """Return how far an architecture gets, computed in this process."""
    net = network(name)
    if not has_batch_norm(net):
        return Outcome(name, 0, (), "", 0, batch_norm=False)
    size = fitted(net)
    model = FloatModel(name=name, net=net.eval(), image_shape=(3, size, size), mean=(0.5,) * 3, std=(0.25,) * 3)
    images = measuring.smooth_images(8, size)
    passed: list[str] = []
    in_float = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        try:
            quantized = _quantized(model, images, passed)
            in_float = len(left_in_float(quantized.graph))
            export_onnx(path, model, quantized)
            passed.append("exported")
            found = open_session(path, threads=1).run(None, {"images": images.numpy()})
            passed.append("ran")
            _check_equal(quantized, images, [torch.from_numpy(each) for each in found])
            passed.append("equal")
        except Exception as error:
            return Outcome(name, size, tuple(passed), f"{type(error).__name__}: {error}"[:300], in_float)
    return Outcome(name, size, tuple(passed), "", in_float)


def _quantized(model: FloatModel, images: Tensor, passed: list[str]) -> QuantizedModel:
    """Return a network in integers; append to `passed` whether it was traced and quantized."""
    try:
        quantized = hptq.quantize(model, images, hptq.Config())
    except Exception:
        folded_graph(model)  # raises the error again if tracing failed
        passed.append("traced")
        raise
    passed += ["traced", "quantized"]
    return quantized


def _check_equal(quantized: nn.Module, images: Tensor, found: list[Tensor]) -> None:
    with torch.no_grad():
        expected = tree_leaves(quantized(images))
    for got, wanted in zip(found, expected, strict=True):
        if not torch.equal(got, wanted):
            raise ValueError(f"{(got != wanted).float().mean():.1%} of the outputs differ")


def _in_a_process(name: str) -> Outcome:
    """Return how far an architecture gets, in a process forked from one that has imported all that it needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "torchvision", "benchmarks.measuring", "dghlib.export"])
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(name, told))
    process.start()
    told.close()
    try:
        if not heard.poll(_SECONDS):
            return Outcome(name, 0, (), f"took longer than {_SECONDS} s", 0)
        return heard.recv()
    except EOFError:
        return Outcome(name, 0, (), "the process was killed", 0)
    finally:
        process.kill()
        process.join()


def _tell(name: str, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, _BYTES))
    torch.set_num_threads(1)
    try:
        connection.send(outcome(name))
    except Exception as error:
        connection.send(Outcome(name, 0, (), f"{type(error).__name__}: {error}"[:300], 0))


def _read(line: str) -> Outcome:
    facts = json.loads(line)
    return Outcome(**{**facts, "stages": tuple(facts["stages"])})


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return the number of architectures, of those with batch norm, and of those that passed each stage."""
    passed = Counter(stage for each in outcomes for stage in each.stages)
    normed = sum(each.batch_norm for each in outcomes)
    return {"all": len(outcomes), "with batch norm": normed} | {stage: passed[stage] for stage in STAGES}


def sweep(names: Sequence[str], run: Callable[[str], Outcome], kept: Path, again: bool = False) -> list[Outcome]:
    """Return how far architectures get, and save each outcome at once. Saved ones are reused unless failed and `again`.

    Outcomes of modified code are used only until the next sweep.
    """
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    done = {each.name: each for each in map(_read, lines) if each.commit and not (again and each.failed)}
    kept.parent.mkdir(parents=True, exist_ok=True)
    version = code_version()
    commit = "" if version["modified"] else version["commit"]
    for name in tqdm([name for name in names if name not in done], desc="architectures"):
        start = time.perf_counter()
        each = done[name] = replace(run(name), seconds=time.perf_counter() - start, commit=commit)
        text = "".join(f"{json.dumps(asdict(one))}\n" for one in done.values())
        write_atomically(kept, lambda path, text=text: path.write_text(text, encoding="utf-8"))
        print(f"{name:45} {len(each.stages)} of {len(STAGES)}  {each.failure[:100]}", flush=True)
    return [done[name] for name in names]


def main(arguments: list[str] | None = None, run: Callable[[str], Outcome] = _in_a_process) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("libraries", nargs="*", default=["torchvision"], help="torchvision, timm, or timm:PART_OF_NAME")
    parser.add_argument("--again", action="store_true", help="also try again those that failed")
    options = parser.parse_args(arguments)
    measuring.prepare(options)
    names = [name for library in options.libraries for name in names_of(library)]
    if options.smoke:
        names = ["torchvision:shufflenet_v2_x0_5"]
    found = sweep(names, run, DONE, options.again)
    print(counts(found))
    seconds = sum(each.seconds for each in found)
    measuring.save(options, "architectures", {"libraries": options.libraries}, found, seconds)


if __name__ == "__main__":
    main()
