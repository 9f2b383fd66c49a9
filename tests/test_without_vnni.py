"""Files on x86 processors without VNNI, emulated if necessary: which settings give right outputs, and which do not."""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from dghlib import models
from dghlib.export import export_onnx, onnx_file, products_overflow
from dghlib.quantizers import hptq

HERE = products_overflow()
EMULATOR = next(filter(None, map(shutil.which, ("qemu-x86_64-static", "qemu-x86_64"))), "")
PROCESSOR = "Haswell"  # this processor has AVX2, and adds products of bytes in 16 bits
PROGRAM = """
import json, sys
import numpy, onnxruntime
images, found = numpy.load("images.npy"), {}
for name in sys.argv[1:]:
    path, _, careful = name.partition(":")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if careful:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found[name] = session.run(None, {"images": images})[0].tolist()
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "processor",
    [
        pytest.param(
            (),
            marks=pytest.mark.skipif(not HERE, reason="needs an x86 processor without VNNI"),
            id="here",
        ),
        pytest.param(
            (EMULATOR, "-cpu", PROCESSOR),
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    not EMULATOR or platform.machine() != "x86_64", reason="needs qemu-x86_64, and an x86 processor"
                ),
            ],
            id="emulated",
        ),
    ],
)
def test_three_settings_are_correct_without_vnni(processor: Sequence[str], tmp_path: Path) -> None:
    """Signed bytes overflow, except with the session option; unsigned bytes or 7-bit weights do not."""
    model = models.load("shapes_residual")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    np.save(tmp_path / "images.npy", images.numpy())
    expected = {}
    for name, bits, signed in (("signed", 8, True), ("unsigned", 8, False), ("seven", 7, True)):
        quantized = hptq.quantize(model, images, hptq.Config(weight_bits=bits))
        export_onnx(tmp_path / name, model, quantized, signed_weights=signed)
        with torch.no_grad():
            expected[name] = quantized(images).numpy()
    ways = ["signed", "signed:careful", "unsigned", "seven"]
    command = [*processor, sys.executable, "-c", PROGRAM, *ways]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=600)
    found = {way: np.array(values, np.float32) for way, values in json.loads(ran.stdout.splitlines()[-1]).items()}
    equal = {way: np.array_equal(values, expected[way.partition(":")[0]]) for way, values in found.items()}
    assert equal == {"signed": False, "signed:careful": True, "unsigned": True, "seven": True}


@pytest.mark.parametrize("overflow", [False, True])
def test_export_warns_where_products_overflow(
    overflow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx_file, "products_overflow", lambda: overflow)
    model = models.load("shapes_residual")
    for bits, signed in ((8, True), (8, False), (7, True), (4, True)):
        quantized = hptq.quantize(model, torch.zeros(2, 3, 32, 32), hptq.Config(weight_bits=bits))
        export_onnx(tmp_path / f"{bits}-{signed}", model, quantized, signed_weights=signed)
    told = [record.getMessage() for record in caplog.records if "session.x64quantprecision" in record.getMessage()]
    assert [message.partition(":")[0] for message in told] == [str(tmp_path / "8-True")] * overflow


def test_products_of_seven_bit_weights_fit_in_sixteen_bits(tmp_path: Path) -> None:
    """Such a processor adds pairs of products in 16 bits before it adds in 32 bits."""
    model = models.load("shapes_residual")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    largest = {}
    for bits in (7, 8):
        quantized = hptq.quantize(model, images, hptq.Config(weight_bits=bits))
        file = export_onnx(tmp_path / "net.onnx", model, quantized)
        weights = [
            np.frombuffer(each.raw_data, np.int8) for each in file.graph.initializer if "weight.codes" in each.name
        ]
        largest[bits] = max(int(np.abs(codes.astype(int)).max()) for codes in weights)
    assert 2 * 255 * largest[7] < 2**15 <= 2 * 255 * largest[8]
