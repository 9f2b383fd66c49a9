"""Several processes make one set with the statistics of one process; if one ends, all end, and a restart resumes."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model, until

from dghlib.generators import dgh
from dghlib.images import load_images, save_images
from dghlib.models import FloatModel
from dghlib.running import processes
from dghlib.running.batchnorm import stored_statistics
from dghlib.storage import large_sets
from dghlib.storage.checkpoints import Checkpoint, folder_beside, remove
from dghlib.synthesis.matching import batch_norm_distance, channel_weights, measure

CONFIG = dgh.Config(num_images=20, batch_size=4, steps=20)  # 5 batches: one process has one more than the other
HALF = CONFIG.steps // 2


def _work(rank: int, port: int, folder: Path) -> None:
    """Do the work of one process of a job started by `torchrun`."""
    sys.stderr = (folder / f"{rank}.stderr").open("w")
    torch.set_num_threads(1)
    job = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= job | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    Checkpoint.save_when_due = _save_and_wait  # type: ignore[method-assign]
    with processes.joined("cpu"):
        images = dgh.generate(make_tiny_model(), CONFIG, progress=False, checkpoint=folder / "run.checkpoint")
        if processes.rank() == 0:
            save_images(folder / "images.safetensors", images, {})


def _save_and_wait(self: Checkpoint, state: Callable[[], dict[str, Any]]) -> None:
    if state()["step"] == HALF:
        self.save(state())
        time.sleep(600 * processes.rank())  # the second process waits to be killed; a resumed job is past this


def _start(folder: Path) -> list[BaseProcess]:
    """Start 2 processes, forked from one that has imported all they need: Python starts once, not 4 times."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dghlib.generators.dgh"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = [context.Process(target=_work, args=(rank, port, folder), daemon=True) for rank in range(2)]
    for process in job:
        process.start()
    return list(job)


def _distance(model: FloatModel, images: torch.Tensor) -> float:
    layers = stored_statistics(model.net, model.image_shape)
    weights = channel_weights(layers.sizes, "mean", torch.device("cpu"))
    with torch.no_grad():
        return batch_norm_distance(measure(model.net, images, layers).moments[0], layers, weights, "std").item()


def test_two_processes_resume_after_one_was_killed(tmp_path, tiny_model):
    """The set of both jobs is as good as that of a single process."""
    first, second = _start(tmp_path)
    until((tmp_path / "run.checkpoint").exists, lambda: first.is_alive() and second.is_alive())
    second.kill()
    first.join()
    assert first.exitcode == 1
    said = (tmp_path / "0.stderr").read_text()
    assert "process 0 of 2 lost another; start the job again, it continues from its checkpoint" in said
    states = torch.load(tmp_path / "run.checkpoint", weights_only=True)["states"]
    assert [state["step"] for state in states] == [HALF, HALF]

    for process in _start(tmp_path):
        process.join()
        assert process.exitcode == 0, [file.read_text() for file in tmp_path.glob("*.stderr")]
    images, _ = load_images(tmp_path / "images.safetensors")
    assert not (tmp_path / "run.checkpoint.corrupt").exists(), "it started from the beginning"
    alone = dgh.generate(tiny_model, CONFIG, progress=False)
    assert images.shape == alone.shape
    both = [_distance(tiny_model, each) for each in (images, alone)]
    noise = _distance(tiny_model, torch.randn(alone.shape))
    assert both[0] < 1.5 * both[1]
    assert both[0] < noise / 2


def test_a_single_process_waits_for_nothing():
    values = torch.ones(3)
    processes.add_up(values)
    assert values.tolist() == [1, 1, 1]
    assert (processes.rank(), processes.count()) == (0, 1)
    assert processes.gathered("state") == ["state"]
    assert processes.scattered(["state"]) == "state"
    assert processes.scattered(None) is None
    assert processes.agreed(True)
    assert not processes.agreed(False)


def test_a_set_in_files_equals_one_in_memory(tmp_path, tiny_model, monkeypatch):
    config = dgh.Config(num_images=24, batch_size=8, steps=6)
    expected = dgh.generate(tiny_model, config, progress=False)
    monkeypatch.setattr(dgh, "LARGEST_IN_MEMORY", 1000)
    assert torch.equal(dgh.generate(tiny_model, config, progress=False), expected)
    checkpoint = tmp_path / "run.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save_when_due", _save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            dgh.generate(tiny_model, config, progress=False, checkpoint=checkpoint)
    assert checkpoint.stat().st_size < 100_000  # the images are not in the checkpoint
    assert torch.equal(dgh.generate(tiny_model, config, progress=False, checkpoint=checkpoint), expected)
    remove(checkpoint)
    assert not folder_beside(checkpoint).exists()
    assert list(tmp_path.iterdir()) == []


def _save_and_stop(self: Checkpoint, state: Callable[[], dict[str, Any]]) -> None:
    if state()["step"] == 3:
        self.save(state())
        raise KeyboardInterrupt


def test_values_in_a_file_are_kept_and_read_batch_by_batch(tmp_path):
    values = large_sets.BatchedValues([2, 3], (4,), tmp_path / "values")
    assert torch.equal(values.whole(), torch.zeros(5, 4))
    values[1].fill_(7)
    again = large_sets.BatchedValues([2, 3], (4,), tmp_path / "values")
    assert again.whole().sum(1).tolist() == [0, 0, 28, 28, 28]
