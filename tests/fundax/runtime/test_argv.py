from fundax.runtime import argv as words

LINE = ["stray", "--data", "a.csv", "b.csv", "--no-ordered", "--lr=1", "--mesh", "-1,2", "--data", "c.csv"]


def test_given_arguments_by_name():
    assert words.given(LINE) == {"data": ["c.csv"], "ordered": [], "lr": ["1"], "mesh": ["-1,2"]}
    assert words.without(LINE, ("data", "lr")) == ["stray", "--no-ordered", "--mesh", "-1,2"]
    assert words.without(LINE, ()) == LINE


def test_paths_that_exist_become_absolute_and_nothing_else(tmp_path, monkeypatch):
    for name in ("shards", "tiny"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    line = ["--data", "array_record:shards,weight=2", "tfds:idrid", "synthetic,n=3", "--init=tiny", "--size", "tiny"]
    here = str(tmp_path)
    assert words.absolute(line) == [
        "--data",
        f"array_record:{here}/shards,weight=2",
        *("tfds:idrid", "synthetic,n=3", f"--init={here}/tiny", "--size", "tiny"),
    ]
    assert words.absolute_values({"init": "tiny", "data": ("tiny",), "size": "tiny", "split": ""}) == {
        "init": f"{here}/tiny",
        "data": [f"{here}/tiny"],
        "size": "tiny",
        "split": "",
    }
    assert words.missing_paths(["--data", "gone.csv,label=x", "shards", "--size", "S/16"]) == ["gone.csv"]
