"""Checkpoints: saved, loaded, and never used for another run."""

import pytest
import torch

from dghlib.storage.checkpoints import Checkpoint, elapsed, folder_beside, remove


def test_the_saved_state_is_loaded_unchanged(tmp_path):
    images = torch.arange(3.0)
    state = {"step": 3, "images": images, "nested": [{"lr": 0.5}]}
    Checkpoint(tmp_path / "c", "key").save(state)
    loaded = Checkpoint(tmp_path / "c", "key").load()
    assert loaded is not None
    assert loaded["step"] == 3
    assert torch.equal(loaded["images"], images)


def test_a_checkpoint_of_another_run_is_kept_for_it(tmp_path, caplog):
    Checkpoint(tmp_path / "c", "one run").save({"step": 3})
    assert Checkpoint(tmp_path / "c", "another run").load() is None
    assert "another run" in caplog.text
    Checkpoint(tmp_path / "c", "another run").save({"step": 5})
    for key, step in {"one run": 3, "another run": 5, "a third run": None}.items():
        state = Checkpoint(tmp_path / "c", key).load()
        assert (state and state["step"]) == step, "one run destroyed the state of another"


@pytest.mark.parametrize("size", [20, 500, None])
def test_a_damaged_checkpoint_is_set_aside(size, tmp_path, caplog):
    """For a truncated file, torch raises different errors."""
    if size is None:
        (tmp_path / "c").write_bytes(b"PK\x03\x04 torn")
    else:
        Checkpoint(tmp_path / "c", "key", seconds=0).save({"values": torch.zeros(1000)})
        (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:size])
    assert Checkpoint(tmp_path / "c", "key").load() is None
    assert (tmp_path / "c.corrupt").exists()
    assert "not a checkpoint" in caplog.text


def test_files_set_aside_earlier_stay_and_large_sets_are_moved_with_them(tmp_path):
    for number in range(3):
        (tmp_path / "c").write_text(f"damaged {number}")
        folder_beside(tmp_path / "c").mkdir()
        (folder_beside(tmp_path / "c") / "images").write_text(f"images {number}")
        assert Checkpoint(tmp_path / "c", "key").load() is None
        assert not folder_beside(tmp_path / "c").exists()
    for number, name in enumerate(["c.corrupt", "c.corrupt1", "c.corrupt2"]):
        assert (tmp_path / name).read_text() == f"damaged {number}"
        assert (folder_beside(tmp_path / name) / "images").read_text() == f"images {number}"


def test_a_large_set_is_kept_with_the_checkpoint_of_its_run(tmp_path):
    path = tmp_path / "c"
    Checkpoint(path, "one run").save({"step": 3})
    folder_beside(path).mkdir()
    (folder_beside(path) / "images").write_text("of one run")
    assert Checkpoint(path, "another run").load() is None
    assert not folder_beside(path).exists()
    assert Checkpoint(path, "one run").load() == {"step": 3}
    assert (folder_beside(path) / "images").read_text() == "of one run"


def test_a_checkpoint_is_saved_only_when_due(tmp_path):
    rare = Checkpoint(tmp_path / "c", "key", seconds=3600)
    rare.save_when_due(lambda: {"step": 1})
    assert not (tmp_path / "c").exists()
    often = Checkpoint(tmp_path / "c", "key", seconds=0)
    often.save_when_due(lambda: {"step": 1})
    assert (tmp_path / "c").exists()
    remove(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_without_a_path_nothing_is_saved():
    nowhere = Checkpoint(None, "key", seconds=0)
    nowhere.save_when_due(lambda: 1 / 0)  # type: ignore[return-value, arg-type]
    assert nowhere.load() is None


def test_seconds_of_interrupted_runs_are_added(tmp_path):
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


def test_temporary_files_of_killed_processes_are_deleted_with_the_checkpoint(tmp_path):
    left = [tmp_path / f".run.checkpoint{stage}.0123abcd.tmp" for stage in ("", ".stage.first")]
    others = [tmp_path / ".run.checkpoint2.0123abcd.tmp", tmp_path / ".run.0123abcd.tmp"]
    for file in (*left, *others):
        file.write_bytes(b"half of a state")
    Checkpoint(tmp_path / "run.checkpoint", "key").save({"step": 1})
    remove(tmp_path / "run.checkpoint")
    assert sorted(tmp_path.iterdir()) == sorted(others)
