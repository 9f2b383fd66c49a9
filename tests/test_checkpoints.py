"""Checkpoints: saved, found again, and never mistaken for another run's."""

import pytest
import torch

from dghlib.storage.checkpoints import Checkpoint, elapsed


def test_state_survives(tmp_path):
    images = torch.arange(3.0)
    state = {"step": 3, "images": images, "nested": [{"lr": 0.5}]}
    Checkpoint(tmp_path / "c", "key").save(state)
    loaded = Checkpoint(tmp_path / "c", "key").load()
    assert loaded is not None
    assert loaded["step"] == 3
    assert torch.equal(loaded["images"], images)


def test_of_another_run_is_set_aside(tmp_path, caplog):
    Checkpoint(tmp_path / "c", "one run").save({"step": 3})
    assert Checkpoint(tmp_path / "c", "another run").load() is None
    assert (tmp_path / "c.corrupt").exists()
    assert "another run" in caplog.text


@pytest.mark.parametrize("size", [20, 500, None])
def test_a_damaged_one_is_set_aside(size, tmp_path, caplog):
    """Of a file that was cut off, torch says this or that."""
    if size is None:
        (tmp_path / "c").write_bytes(b"PK\x03\x04 torn")
    else:
        Checkpoint(tmp_path / "c", "key", seconds=0).save({"values": torch.zeros(1000)})
        (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:size])
    assert Checkpoint(tmp_path / "c", "key").load() is None
    assert (tmp_path / "c.corrupt").exists()
    assert "not a checkpoint" in caplog.text


def test_is_saved_when_due_only(tmp_path):
    rare = Checkpoint(tmp_path / "c", "key", seconds=3600)
    rare.save_when_due(lambda: {"step": 1})
    assert not (tmp_path / "c").exists()
    often = Checkpoint(tmp_path / "c", "key", seconds=0)
    often.save_when_due(lambda: {"step": 1})
    assert (tmp_path / "c").exists()
    often.remove()
    assert not (tmp_path / "c").exists()


def test_without_a_path_nothing_is_written_or_asked_for():
    nowhere = Checkpoint(None, "key", seconds=0)
    nowhere.save_when_due(lambda: 1 / 0)  # type: ignore[return-value, arg-type]
    assert nowhere.load() is None


def test_seconds_of_earlier_starts_count(tmp_path):
    path = tmp_path / "c"
    assert elapsed(path) == 0
    first = Checkpoint(path, "key")
    first._started_at -= 100
    first.save({"step": 1})
    assert 100 <= elapsed(path) < 110
    second = Checkpoint(path, "key")
    second.load()
    second._started_at -= 30
    second.save({"step": 2})
    assert 130 <= elapsed(path) < 140
