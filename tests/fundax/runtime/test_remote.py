"""Runs at addresses: what is stored is what a local folder would hold."""

import json

import fsspec
import jax
import numpy as np
import pytest
from tiny_objective import recipe

from data_pipelines.records import DataError
from fundax.runtime import remote
from fundax.runtime.checkpoint import load_params, saved_steps
from fundax.train.loop import fit
from fundax.types import UserError


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An address in memory, with an empty cache of copies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def test_a_run_that_dies_and_resumes_at_an_address_equals_the_local_one(bucket, tmp_path, capsys):
    whole = fit(recipe(steps=6), tmp_path / "whole")
    with pytest.raises(UserError, match="the training data ended before step 5"):
        fit(recipe(steps=6, ends=4), f"{bucket}/run")
    parts = fit(recipe(steps=6), f"{bucket}/run")
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((whole, parts)))
    copy = remote.fetched(f"{bucket}/run")
    assert losses(copy) == losses(tmp_path / "whole")
    assert {p.name for p in copy.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    assert saved_steps(copy) == [4, 6] and not (copy / "checkpoints" / "6" / "opt").exists()
    jax.tree.map(np.testing.assert_array_equal, load_params(copy)[0], jax.device_get(whole.params))
    assert f"Latest checkpoint: {bucket}/run/checkpoints/6" in capsys.readouterr().err
    before = remote.storage.files(f"{bucket}/run")
    fit(recipe(steps=6), f"{bucket}/run")
    after = remote.storage.files(f"{bucket}/run")
    assert {name for name in after if after[name] != before.get(name)} <= {"owner.json"}


def test_the_training_that_started_last_owns_a_run(bucket):
    with remote.mirrored(f"{bucket}/run") as first:
        remote.claim(first)
        (first / "metrics.jsonl").write_text("first")
        remote.push(first)
        with remote.mirrored(f"{bucket}/run") as second:
            remote.claim(second)
            (second / "metrics.jsonl").write_text("second")
        (first / "metrics.jsonl").write_text("first again")
        with pytest.raises(UserError, match="another training of this run has started"):
            remote.push(first)
    assert (remote.fetched(f"{bucket}/run") / "metrics.jsonl").read_text() == "second"


def test_a_step_whose_upload_was_cut_short_does_not_exist(bucket):
    memory = fsspec.filesystem("memory")
    for name in ("1/params/a", "1/commit_success.txt", "2/params/a", "2/params/commit_success.txt"):
        memory.pipe_file(f"/bucket/run/checkpoints/{name}", b"1")
    memory.pipe_file("/bucket/run/config.json", b"{}")
    assert saved_steps(remote.fetched(f"{bucket}/run")) == [1]
    with remote.mirrored(f"{bucket}/run") as folder:
        assert saved_steps(folder) == [1] and remote.shown(folder) == f"{bucket}/run"


def test_a_command_reads_copies_and_uploads_what_it_writes(bucket, capsys):
    fsspec.filesystem("memory").pipe_file("/bucket/run/config.json", b"{}")
    words = [f"{bucket}/run", "--to", "flair", f"{bucket}/out", "--checkpoint=2"]
    with remote.localized("export", words) as here:
        assert [w for w in here if "://" in w] == [] and here[1::2] == ["--to", here[3]] and here[4] == "--checkpoint=2"
        path = remote.Path(here[3])
        path.mkdir()
        (path / "config.json").write_text("{}")
        print(f"wrote {path}")
    assert capsys.readouterr().out == f"wrote {bucket}/out\n"
    assert list(remote.storage.files(f"{bucket}/out")) == ["config.json"]
    with pytest.raises(DataError, match="memory://bucket/out exists"), remote.localized("export", words):
        pass
    with remote.localized("export", [*words, "--overwrite"]) as here:
        remote.Path(here[3]).mkdir()
        (remote.Path(here[3]) / "model.safetensors").write_text("another format")
    assert list(remote.storage.files(f"{bucket}/out")) == ["model.safetensors"]


def test_outputs_are_found_by_name_and_place():
    assert remote._outputs("synth", ["gs://a", "--out", "gs://b", "--n", "4"]) == {2}
    assert remote._outputs("import", ["gs://a", "--workdir=gs://b"]) == {1}
    assert remote._outputs("export", ["--overwrite", "gs://a", "--to", "flair", "gs://b"]) == {4}
    assert remote._outputs("data", ["build", "idrid", "--from", "gs://a", "--data-dir", "gs://b"]) == {5}
    assert remote._outputs("data", ["show", "--source", "gs://a", "--data-dir", "gs://b"]) == set()
