"""The command line: the 3 steps of an engineer, settings with types, errors in 1 line."""

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from conftest import make_tiny_model
from packaging.requirements import Requirement
from PIL import Image

from dghlib import cli, models
from dghlib.commands import networks, runs, settings
from dghlib.experiments import run, scoring
from dghlib.experiments.recorded import ANEW_VARIABLE
from dghlib.generators import dgh, genq, noise
from dghlib.images import load_images
from dghlib.plans.methods import table2
from dghlib.quantizers import QuantizedModel, reconstruction
from dghlib.running import processes
from dghlib.storage.locks import claim


@pytest.fixture(autouse=True)
def threads_of_other_processes_stay(monkeypatch):
    """Restore after a test what `--threads` changed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def _dgh(*words: str) -> int:
    return cli.main([*words, "--threads", "1"])


def test_generate_quantize_evaluate(tmp_path, capsys):
    images, quantized = tmp_path / "images.safetensors", tmp_path / "model.safetensors"
    settings = ["--set", "num_images=8", "--set", "batch_size=8", "--set", "steps=2"]
    assert _dgh("generate", "shapes_bottleneck", "--out", str(images), *settings) == 0
    assert load_images(images)[0].shape == (8, 3, 32, 32)
    assert load_images(images)[1]["method"] == "dgh"
    arguments = ["quantize", "shapes_bottleneck", "--images", str(images), "--bits", "W8A8", "--out", str(quantized)]
    assert _dgh(*arguments) == 0
    assert _dgh("evaluate", "shapes_bottleneck", "--quantized", str(quantized), "--num-images", "96") == 0
    printed = capsys.readouterr().out
    assert "8 images of shape (3, 32, 32)" in printed
    with torch.no_grad():
        logits = models.load("shapes_bottleneck").net(load_images(images)[0])
    assert f"the network sees {len(logits.argmax(1).unique())} of 48 classes" in printed
    assert f"its logits range from {logits.min():.1f} to {logits.max():.1f}" in printed
    assert "top-1" in printed
    assert "of 96 images" in printed


def test_generate_warns_of_missing_classes_with_a_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(networks, "_logits", lambda model, images: torch.tensor([[1.0, 0.0]]))
    generate = ["generate", "shapes_inverted", "--out", str(tmp_path / "images.safetensors"), "--force"]
    few = ["--set", "batch_size=8", "--set", "steps=1", "--set"]
    assert _dgh(*generate, *few, "num_images=8") == 0
    assert "more images or more steps may restore them" in capsys.readouterr().out
    assert _dgh(*generate, *few, "num_images=4", "--set", "batch_size=4") == 0
    assert "may restore them" not in capsys.readouterr().out


def test_export_and_report_do_not_replace_files(tmp_path, capsys, monkeypatch):
    quantized, exported = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    quantize = ["quantize", "shapes_bottleneck", "--real", "shapes", "--num-images", "16", "--bits", "W4A4"]
    short = ["--method", "brecq", "--set", "iterations=1", "--set", "step_iterations=1"]
    assert _dgh(*quantize, *short, "--out", str(quantized)) == 0
    assert _dgh("export", "shapes_bottleneck", "--quantized", str(quantized), "--out", str(exported)) == 0
    assert _dgh("evaluate", "shapes_bottleneck", "--quantized", str(exported), "--num-images", "96") == 0
    assert "of 96 images" in capsys.readouterr().out
    report = ["report", "shapes_bottleneck", "--quantized", str(quantized), "--real", "shapes", "--num-images", "4"]
    with monkeypatch.context() as full:
        full.setattr(pd.DataFrame, "to_csv", lambda *_, **__: exec('raise OSError(28, "No space left on device")'))
        assert _dgh(*report, "--out", str(tmp_path / "report")) == 1
    assert not list(tmp_path.glob("*report*"))
    assert _dgh(*report, "--worst", "3", "--out", str(tmp_path / "report")) == 0
    printed = capsys.readouterr().out
    assert "accumulated" in printed
    assert "before" in printed
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "noise.csv",
        "noise.svg",
        "units.csv",
        "units.svg",
    }
    assert _dgh(*report, "--out", str(tmp_path / "report")) == 1
    before = exported.read_bytes()
    assert _dgh("export", "shapes_bottleneck", "--out", str(exported)) == 1
    assert f"{exported} exists; --force replaces it" in capsys.readouterr().err
    assert exported.read_bytes() == before
    assert _dgh("export", "shapes_bottleneck", "--out", str(exported), "--force") == 0
    assert len(exported.read_bytes()) > 2 * len(before)
    unsigned = ["export", "shapes_bottleneck", "--quantized", str(quantized), "--unsigned-weights"]
    assert _dgh(*unsigned, "--out", str(exported), "--force") == 0
    kinds = {each.data_type for each in onnx.load(exported).graph.initializer if each.name.endswith("weight.codes")}
    assert kinds == {onnx.TensorProto.UINT4}


def test_a_detector_is_quantized_and_its_boxes_are_saved(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(scoring.DRAWN_TRAINING_IMAGES, "shapes_detection", 16)
    quantized, boxes = tmp_path / "model.safetensors", tmp_path / "boxes.json"
    real = ["--real", "shapes_detection", "--num-images", "8"]
    assert _dgh("quantize", "shapes_ssdlite", *real, "--out", str(quantized)) == 0
    evaluate = ["evaluate", "shapes_ssdlite", "--quantized", str(quantized), "--num-images", "8"]
    assert _dgh(*evaluate, "--boxes", str(boxes)) == 0
    assert "map50 " in capsys.readouterr().out
    found = json.loads(boxes.read_text())
    assert {box["image_id"] for box in found} <= set(range(1, 9))
    assert found[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert _dgh(*evaluate, "--boxes", str(boxes)) == 1
    assert f"{boxes} exists; --force replaces it" in capsys.readouterr().err


def test_sets_for_other_tools(tmp_path, capsys):
    settings = ["--method", "noise", "--set", "num_images=3"]
    assert _dgh("generate", "shapes_bottleneck", "--out", str(tmp_path / "set.npz"), *settings) == 0
    with np.load(tmp_path / "set.npz") as arrays:
        assert arrays["images"].shape == (3, 3, 32, 32)
        assert arrays["mean"].shape == (3,)
    capsys.readouterr()
    assert _dgh("generate", "shapes_bottleneck", "--out", str(tmp_path / "set"), *settings) == 0
    assert "% of the values clamped" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert _dgh("generate", "shapes_bottleneck", "--out", str(tmp_path / "set"), *settings, "--force") == 1
    assert "is not empty: choose a new folder" in capsys.readouterr().err
    assert _dgh("quantize", "shapes_bottleneck", "--images", str(tmp_path / "set"), "--out", str(tmp_path / "q")) == 1
    assert "reads the .safetensors files" in capsys.readouterr().err


def test_an_onnx_file_of_another_network_is_refused(tmp_path, capsys):
    path = tmp_path / "net.onnx"
    assert _dgh("evaluate", "shapes_bottleneck", "--quantized", str(path)) == 1
    assert "there is no ONNX file at" in capsys.readouterr().err
    assert _dgh("export", "shapes_residual", "--out", str(path)) == 0
    assert _dgh("evaluate", "shapes_bottleneck", "--quantized", str(path)) == 1
    assert "holds 'shapes_residual', not 'shapes_bottleneck'" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:1000])
    assert _dgh("evaluate", "shapes_residual", "--quantized", str(path)) == 1
    assert "onnxruntime cannot run" in capsys.readouterr().err


def test_profiles_of_the_package_need_no_data(capsys):
    assert _dgh("data", "shapes") == 0
    assert "needs no data" in capsys.readouterr().out


def test_threads_below_one_are_refused(capsys):
    assert cli.main(["evaluate", "shapes_bottleneck", "--threads", "1000000"]) == 1
    assert "--threads must be from 1 to" in capsys.readouterr().err
    assert cli.main(["evaluate", "shapes_bottleneck", "--threads", "-3"]) == 1
    assert "--threads must be from 1 to" in capsys.readouterr().err


def test_quantize_uses_the_named_device(tmp_path, capsys):
    arguments = ["--real", "shapes", "--num-images", "4", "--out", str(tmp_path / "q"), "--device", "nonsense"]
    assert _dgh("quantize", "shapes_bottleneck", *arguments) == 1
    assert "nonsense" in capsys.readouterr().err


def test_calibration_with_real_images(tmp_path):
    out = tmp_path / "model.safetensors"
    arguments = ["--real", "shapes", "--num-images", "16", "--out", str(out)]
    assert _dgh("quantize", "shapes_bottleneck", *arguments) == 0
    assert out.exists()


def test_real_images_are_those_of_the_book_at_the_networks_size(tmp_path):
    model = models.load("shapes_bottleneck")
    real = networks.calibration_images(model, None, "shapes", 6, 1)
    assert torch.equal(real, scoring.real_images("shapes", model, 6, 1))
    for number in range(6):
        photograph = tmp_path / "photographs" / "class" / f"{number}.png"
        photograph.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40 + number)).save(photograph)
    photographs = str(tmp_path / "photographs")
    assert networks.calibration_images(model, None, photographs, 6, 1).shape == (6, 3, 32, 32)


OWN = """
from torch import nn
from dghlib import FloatModel

def make():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    return FloatModel(name="own", net=net.eval(), image_shape=(1, 8, 8), mean=(0.5,), std=(0.5,))

def number():
    return 3

def broken():
    raise KeyError("weights")
"""


def test_a_users_own_network_is_quantized(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_network.py").write_text(OWN)
    assert (
        _dgh("generate", "own_network:make", "--out", "images.safetensors", "--set", "num_images=4", "--set", "steps=2")
        == 0
    )
    assert _dgh("quantize", "own_network:make", "--images", "images.safetensors", "--out", "model") == 0
    assert _dgh("evaluate", "own_network:make", "--quantized", "model") == 1
    assert "own has no test set; name one with --data" in capsys.readouterr().err
    assert _dgh("generate", "own_network:number", "--out", "x.npz") == 1
    assert "must return a dghlib.FloatModel, it returned int" in capsys.readouterr().err
    assert _dgh("generate", "own_network:nothing", "--out", "x.npz") == 1
    assert "cannot get a network from 'own_network:nothing'" in capsys.readouterr().err
    assert _dgh("generate", "own_network:broken", "--out", "x.npz") == 1
    assert "cannot get a network from 'own_network:broken': KeyError: 'weights'" in capsys.readouterr().err


def test_channels_that_png_files_lack_are_refused_before_generation(tmp_path, monkeypatch, capsys):
    four = dataclasses.replace(make_tiny_model(), image_shape=(4, 8, 8), mean=(0.5,) * 4, std=(0.5,) * 4)
    monkeypatch.setattr(models, "load", lambda name: four)
    monkeypatch.setattr(noise, "generate", lambda *arguments, **settings: pytest.fail("began"))
    assert _dgh("generate", "shapes_residual", "--method", "noise", "--out", str(tmp_path / "folder")) == 1
    assert "PNG files have 1 or 3 channels, the network's images have 4: name an .npz file" in capsys.readouterr().err


def test_gray_images_work_in_all_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_gray.py").write_text(OWN)
    few = ["--set", "num_images=4", "--set", "steps=2"]
    assert _dgh("generate", "own_gray:make", "--out", "pngs", *few) == 0
    for path in Path("pngs").iterdir():
        with Image.open(path) as image:
            assert image.mode == "L"
    assert _dgh("quantize", "own_gray:make", "--real", "pngs", "--num-images", "4", "--out", "model") == 0
    for name in ("one", "two"):
        Path("classes", name).mkdir(parents=True)
        Path("pngs", "00000.png").rename(Path("classes", name, "image.png"))
        Path("pngs", "00001.png").rename(Path("pngs", "00000.png")) if name == "one" else None
    assert _dgh("evaluate", "own_gray:make", "--quantized", "model", "--data", "classes") == 0
    assert "of 2 images" in capsys.readouterr().out
    assert _dgh("evaluate", "own_gray:make", "--data", "pngs") == 1
    assert "have 1 classes, but the network has 2" in capsys.readouterr().err


def test_networks_in_half_precision_or_without_logits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = """
def half():
    model = make()
    model.net.half()
    return model

class Named(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x):
        return {"logits": self.net(x)}

def named():
    return FloatModel(name="own", net=Named(make().net), image_shape=(1, 8, 8), mean=(0.5,), std=(0.5,))
"""
    (tmp_path / "own_half.py").write_text(OWN + code)
    np.savez("data.npz", images=np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1), labels=np.array([0, 1]))
    assert _dgh("evaluate", "own_half:half", "--data", "data.npz") == 0
    assert "of 2 images" in capsys.readouterr().out
    few = ["--set", "num_images=4", "--set", "steps=1"]
    assert _dgh("generate", "own_half:named", "--method", "zeroq", "--out", "images.npz", *few) == 0
    assert "classes" not in capsys.readouterr().out
    assert not list(tmp_path.glob("*.checkpoint"))


SHORT = ["--method", "brecq", "--bits", "W4A4", "--set", "iterations=1", "--set", "step_iterations=1"]


def test_the_checkpoint_is_kept_until_the_result_is_written(tmp_path, monkeypatch, capsys):
    out = tmp_path / "model.safetensors"
    quantize = ["quantize", "shapes_bottleneck", "--real", "shapes", "--num-images", "8", *SHORT, "--out", str(out)]
    with monkeypatch.context() as full:
        full.setattr(QuantizedModel, "save", lambda *arguments: exec('raise OSError(28, "No space left on device")'))
        assert _dgh(*quantize) == 1
    assert "No space left" in capsys.readouterr().err
    with monkeypatch.context() as again:
        again.setattr(reconstruction, "learn", lambda *arguments: pytest.fail("learned again"))
        assert _dgh(*quantize) == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("command", ["generate", "quantize", "export", "report"])
def test_nothing_is_computed_if_the_output_cannot_be_written(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "load", lambda name: pytest.fail("began"))
    source = {"quantize": ["--real", "shapes"], "report": ["--real", "shapes", "--quantized", "x"]}.get(command, [])
    if command == "generate":
        monkeypatch.setattr(models, "load", lambda name: make_tiny_model())
        monkeypatch.setattr(dgh, "generate", lambda *arguments, **settings: pytest.fail("began"))
    words = [command, "shapes_bottleneck", *source, "--out"]
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "file").touch()
    refused = {
        str(tmp_path / "full"): "--force writes into it" if command == "report" else "folder",
        str(tmp_path / "file" / "x"): "file",
        str(tmp_path / ("x" * 250)): "File name too long; name another place",
        str(tmp_path / "busy"): "another process is writing",
    }
    for out, message in refused.items():
        with claim(tmp_path / "busy"):
            assert _dgh(*words, out) == 1, out
        assert message in capsys.readouterr().err


def test_unexpected_errors_are_one_line(monkeypatch, capsys):
    def broken(profile):
        raise KeyError("x")

    monkeypatch.setattr(runs.assets, "of_profile", broken)
    assert _dgh("data", "cifar10") == 1
    assert capsys.readouterr().err == "dgh: KeyError: 'x' (--traceback shows where)\n"


@pytest.mark.parametrize("error", [MemoryError("of 9 GB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_reported_with_a_remedy(error, monkeypatch, capsys):
    def broken(profile):
        raise error

    monkeypatch.setattr(runs.assets, "of_profile", broken)
    assert _dgh("data", "cifar10") == 1
    assert "not enough memory for this; ask for fewer images or for smaller batches" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantize", "shapes_residual", "--real", "shapes", "--out", "x.onnx"], "`dgh export --quantized` then"),
        (["generate", "shapes_residal", "--out", "x"], "did you mean 'shapes_residual'"),
        (["generate", "shapes_residual", "--out", "x", "--method", "dhg"], "did you mean 'dgh'"),
        (["generate", "shapes_residual", "--out", "x", "--set", "step=3"], "did you mean 'steps'"),
        (["generate", "shapes_residual", "--out", "x", "--method", "noise", "--compile"], "with dgh, not with noise"),
        (["generate", "shapes_residual", "--out", "x", "--set", "steps=many"], "steps cannot be 'many'; it takes int"),
        (["generate", "shapes_residual", "--out", "x", "--set", "steps"], "write name=value"),
        (["generate", "shapes_residual", "--out", "x", "--set", "steps=0"], "steps must be at least 1, got 0"),
        (["quantize", "shapes_residual", "--images", "absent", "--out", "x"], "no image set at absent"),
        (["generate", "shapes_residual", "--out", "x.png"], "must end in .safetensors or .npz"),
        (["evaluate", "shapes_residual", "--quantized", "absent"], "absent"),
        (["evaluate", "shapes_residual", "--boxes", "x"], "only a detector finds boxes"),
        (["data", "cifar"], "did you mean 'cifar10'"),
        (["generate", "shapes_residual", "--out", "x", "--device", "toaster"], "--device toaster cannot be used here"),
        (["quantize", "shapes_residual", "--out", "x", "--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["evaluate", "shapes_residual", "--device", "meta"], "--device meta cannot be used here"),
        (["run", "table2", "--device", "toaster"], "--device toaster cannot be used here"),
        (["run", "table22"], "did you mean 'table2'"),
        (["run", "table2", "--models", "resnet"], "model must be one of"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(arguments, message, capsys):
    assert _dgh(*arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("dgh: ")
    assert message in error


def test_run_says_how_many_records_come_from_the_repository(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "PUBLISHED", tmp_path / "published")
    for wanted in table2("shapes", "smoke", sources=["noise"], bits=["W8A8"], seeds=1, models=["shapes_residual"]):
        record = {"inputs": run.inputs_of(wanted), "outputs": {"top1": 12.34}, "provenance": {}}
        run.Workshop(run.PUBLISHED).keep(wanted, record)
    words = ["--budget", "smoke", "--sources", "noise", "--bits", "W8A8", "--seeds", "1", "--models", "shapes_residual"]
    assert _dgh("run", "table2", *words, "--results", str(tmp_path / "own")) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 records are from the repository" in shown
    assert "12.34" in shown
    monkeypatch.setenv(ANEW_VARIABLE, "")  # the command sets it, so it is restored afterwards
    assert _dgh("run", "table2", *words, "--results", str(tmp_path / "own"), "--anew") == 0
    shown = capsys.readouterr().out
    assert "are from the repository" not in shown
    assert "12.34" not in shown


ON_A_PLAIN_INSTALL = """
import sys
missing, commands = sys.argv[1].split(), [line.split() for line in sys.argv[2].splitlines()]
sys.modules |= dict.fromkeys(missing)
from dghlib import cli
for command in commands:
    status = cli.main(command)
    print(f"dgh: ended with {status}", file=sys.stderr)
"""


def test_a_plain_installation_computes_and_names_missing_extras(tmp_path):
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = pyproject["project"]["optional-dependencies"]
    optional = {Requirement(line).name for name in extras if name != "dev" for line in extras[name]}
    missing = [name for name, owners in packages_distributions().items() if optional & set(owners)]
    assert {"IPython", "nbformat", "pandas", "onnx", "distributed"} <= set(missing)
    commands = """
        generate --help
        generate shapes_bottleneck --out images.safetensors --method noise --set num_images=4 --threads 1
        generate shapes_bottleneck --out images.npz --method noise --set num_images=4 --threads 1
        quantize shapes_bottleneck --images images.safetensors --out model --threads 1
        report shapes_bottleneck --quantized model --images images.safetensors
        evaluate shapes_ssdlite
        run table2
        book"""
    arguments = [sys.executable, "-c", ON_A_PLAIN_INSTALL, " ".join(missing), commands.strip()]
    told = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    said = [re.sub(r"[\w.]+ is missing", "...", line) for line in told.splitlines() if line.startswith("dgh: ")]
    works = ["dgh: ended with 0"]
    onnx, book, detection = (
        [f"dgh: ...: pip install 'dghlib[{extra}]'", "dgh: ended with 1"] for extra in ("onnx", "book", "detection")
    )
    assert said == [*works, *works, *onnx, *works, *book, *detection, *book, *book]


def test_settings_are_read_in_the_types_of_their_fields():
    words = ["steps=5", "scope=none", "slack=0.5", "output_power=1", "spread=variance", "clip=true", "extra_pixels=2"]
    assert settings.parse_settings(dgh.Config(), words) == {
        "steps": 5,
        "scope": None,
        "slack": 0.5,
        "output_power": 1,
        "spread": "variance",
        "clip": True,
        "extra_pixels": 2,
    }


def test_lists_are_read_from_arguments_and_files(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("tench, Tinca tinca\ngoldfish\n")
    read = settings.parse_settings(genq.Config(), ["class_names=cat,dog", "scheduler=None", "size=64"])
    assert read == {"class_names": ("cat", "dog"), "scheduler": None, "size": 64}
    assert settings.parse_settings(genq.Config(), [f"class_names={names}"]) == {
        "class_names": ("tench, Tinca tinca", "goldfish")
    }
    with pytest.raises(ValueError, match=r"unknown setting of .* 'weights'"):
        settings.parse_settings(genq.Config(), ["weights=1"])


def test_only_dgh_runs_in_several_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert _dgh("generate", "shapes_bottleneck", "--method", "zeroq", "--out", str(tmp_path / "set")) == 1
    assert "zeroq works only in a single process" in capsys.readouterr().err


def test_ctrl_c_is_reported_in_one_line(monkeypatch, capsys):
    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(dgh, "generate", interrupted)
    assert _dgh("generate", "shapes_bottleneck", "--out", "unused") == 130
    assert "and not computed again" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_examples(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert f"dgh {command} " in capsys.readouterr().out.partition("example:")[2]


def test_threads_are_set_for_this_process_and_its_children(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(processes, "cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cli.main(["data", "shapes", "--threads", "2"]) == 0
    told = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    assert torch.get_num_threads() == int(subprocess.run(told, capture_output=True, check=True).stdout) == 2
    torch.set_num_threads(before)


def test_help_imports_no_heavy_packages():
    code = """
import sys
from dghlib import cli
status = cli.main(["--help"])
print(status, sorted({"torch", "pandas", "numpy"} & set(sys.modules)))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "0 []"
    for command in cli.COMMANDS:
        assert re.search(rf"^\W*{command} ", shown, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["genrate", "x"], 'Did you mean "generate"'),
        (["generate"], "MODEL requires an argument"),
        (["run", "table2", "--seeds", "two"], "--seeds"),
        (["run", "table2", "--seeds", "1.9"], "'1.9' is no whole number"),
        (["quantize", "shapes_residual", "--out", "x", "--seed", "1.9"], "'1.9' is no whole number"),
        (["evaluate", "shapes_residual", "--num-images", "1.9"], "'1.9' is no whole number"),
        (["data", "shapes", "--threads", "0.5"], "'0.5' is no whole number"),
        (["data", "shapes", "--profle", "x"], "--profle"),
    ],
)
def test_unreadable_arguments_are_reported_in_one_line(words, message, capsys):
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("method", settings.METHODS)
def test_every_setting_is_explained(method):
    config = settings.METHODS[method].Config
    assert {field.name for field in dataclasses.fields(config) if field.init} <= settings._meanings(config).keys()


def test_settings_are_listed_with_their_meaning(capsys):
    assert _dgh("settings", "brecq") == 0
    shown = capsys.readouterr().out
    assert "  iterations = 20000\n      steps per unit" in shown
    assert "  activation_bits = 4\n      2 to 8" in shown  # from a base class, whose comment explains 2 fields
    assert _dgh("settings", "dgh") == 0
    shown = capsys.readouterr().out
    assert "preset fixed_weight: relative = False, output_share = None" in shown
    assert "  steps = 1000\n      sweeps over all batches\n" in shown
    assert "  output_share = 0.4\n      norm of the reward's gradient" in shown  # its comment is above the field
    assert _dgh("settings", "brec") == 1
    assert "did you mean 'brecq'" in capsys.readouterr().err
