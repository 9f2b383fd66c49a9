"""Curved functions in files give the codes of the simulation, whatever the last bits of the runtime's exponential."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dghlib.export import export_onnx
from dghlib.export.curves import change_of_step
from dghlib.models import FloatModel
from dghlib.quantizers import hptq
from dghlib.quantizers.grid import UniformQuantizer

CODES = torch.arange(256)


def grid(scale: float, zero_point: int) -> UniformQuantizer:
    return UniformQuantizer(torch.tensor(scale), torch.tensor(zero_point), bits=8, signed=False)


GIVEN = grid(1 / 16, 128)  # -8 to almost 8


def step_with_a_tie(function: nn.Module, code: int, made_code: int) -> float:
    """Return a step that puts the result of a code in the middle between 2 codes."""
    return (function(GIVEN.from_codes(torch.tensor(code)).double()) / (made_code + 0.5)).item()


@pytest.mark.parametrize("function", [nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.Mish()])
def test_changed_steps_move_results_away_from_ties_and_keep_codes(function: nn.Module) -> None:
    made = grid(step_with_a_tie(function, 200, 117), 10)
    change = change_of_step(function, GIVEN, made)
    assert change is not None
    assert 0 < abs(change) <= 2**-12
    values = GIVEN.from_codes(CODES)
    exact = function(values.double() * (1 + change)) / made.scale.double() + made.zero_point
    assert torch.equal(exact.round().clamp(0, 255).int(), made.to_codes(function(values)))
    within = exact[(exact > 0) & (exact < 255)]
    assert ((within % 1 - 0.5).abs() > 1e-6).all()


def test_steps_stay_without_a_result_near_a_tie() -> None:
    assert change_of_step(nn.SiLU(), GIVEN, grid(1 / 16, 10)) == 0


def test_steps_stay_if_no_change_helps() -> None:
    assert change_of_step(lambda x: x * 0 + 0.5, GIVEN, grid(1.0, 0)) is None


class Curved(nn.Module):
    """A convolution that passes one channel, a SiLU, and a convolution that reads its result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
        for layer in (self.first, self.last):
            nn.init.ones_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.silu(self.first(x)))


def silu_of_the_runtime(values: Tensor) -> Tensor:
    """Return the SiLU of numbers (K,) as onnxruntime computes it in float."""
    nodes = [onnx.helper.make_node("Sigmoid", ["x"], ["s"]), onnx.helper.make_node("Mul", ["x", "s"], ["y"])]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy"]
    opset = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "silu", ends[:1], ends[1:]), opset_imports=opset, ir_version=10
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": values.numpy()})[0])


def test_a_file_equals_the_simulation_where_last_bits_decide(tmp_path: Path) -> None:
    """The tie between 2 codes is put between the results of torch and of the runtime for one code."""
    values = GIVEN.from_codes(CODES)
    found = silu_of_the_runtime(values)
    middles = (F.silu(values).double() + found.double()) / 2
    differ = [code for code in range(150, 250) if found[code] != F.silu(values)[code]]
    assert differ, "both results are equal to the last bit, so that no tie can lie between them"
    model = FloatModel(name="curved", net=Curved().eval(), image_shape=(1, 16, 16), mean=(0.5,), std=(0.25,))
    images = values.reshape(1, 1, 16, 16)
    quantized = hptq.quantize(model, images, hptq.Config(bias_correction=False))
    grids = quantized.activation_quantizers()
    quantized.set_activation_quantizers({"images": GIVEN, "first": GIVEN})
    name = next(name for name in grids if "silu" in name)
    steps = [(middles[code] / (code - 127.5)).float().item() for code in differ]
    apart = [step for step in steps if not torch.equal((F.silu(values) / step).round(), (found / step).round())]
    assert apart, "no step puts a tie between the two"
    quantized.set_activation_quantizers({name: grid(apart[0], 10), "last": grid(apart[0], 10)})
    export_onnx(tmp_path / "net.onnx", model, quantized)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        assert np.array_equal(session.run(None, {"images": images.numpy()})[0], quantized(images).numpy())


class Silu(nn.Module):
    """A SiLU whose results have a coarser grid than its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


def test_ties_far_from_zero_go_to_even_codes(tmp_path: Path) -> None:
    """From 17 on, SiLU(x) is x to the last bit, and every other x is a tie on the grid of the results."""
    model = FloatModel(name="silu", net=Silu().eval(), image_shape=(1, 16, 16), mean=(0.5,), std=(0.25,))
    values = grid(1 / 8, 32).from_codes(CODES)
    images = values.reshape(1, 1, 16, 16)
    quantized = hptq.quantize(model, images, hptq.Config())
    quantized.set_activation_quantizers({"images": grid(1 / 8, 32), "silu": grid(1 / 4, 10)})
    assert change_of_step(F.silu, grid(1 / 8, 32), grid(1 / 4, 10)) is None
    file = export_onnx(tmp_path / "net.onnx", model, quantized)
    assert "Exp" in {node.op_type for node in file.graph.node}
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        assert np.array_equal(session.run(None, {"images": images.numpy()})[0], quantized(images).numpy())
