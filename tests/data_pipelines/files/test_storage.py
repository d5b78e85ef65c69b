"""Files at addresses: copied once, renewed when they change, uploaded when they are new."""

import fsspec
import pytest

from data_pipelines.files.storage import fetched, fetched_word, files, is_address, normal, upload
from data_pipelines.records import DataError


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An address in memory, with an empty cache of copies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


def put(address, text):
    with fsspec.open(address, "w") as file:
        file.write(text)


def test_a_local_path_is_no_address(tmp_path):
    assert fetched(tmp_path) == tmp_path
    assert not any(
        map(is_address, ("runs/a", "/data/x.csv", "array_record:runs", "tfds:idrid", "synthetic,n=4", "C:/x"))
    )
    assert is_address("gs://bucket/run") and is_address("s3:/bucket/run") and normal("gs:/b/run/") == "gs://b/run"


def test_a_folder_is_copied_and_renewed_where_it_changes(bucket):
    for name in ("a.csv", "deep/b.csv", "gone.csv"):
        put(f"{bucket}/data/{name}", name)
    folder = fetched(f"{bucket}/data")
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.csv")} == {"a.csv", "deep/b.csv", "gone.csv"}
    untouched = (folder / "deep" / "b.csv").stat().st_mtime_ns
    put(f"{bucket}/data/a.csv", "another")
    fsspec.filesystem("memory").rm_file("/bucket/data/gone.csv")
    assert fetched(f"{bucket}/data") == folder and (folder / "a.csv").read_text() == "another"
    assert not (folder / "gone.csv").exists()
    assert (folder / "deep" / "b.csv").stat().st_mtime_ns == untouched


def test_a_file_is_copied_alone(bucket):
    put(f"{bucket}/data/a.csv", "text")
    put(f"{bucket}/data/b.csv", "text")
    path = fetched(f"{bucket}/data/a.csv")
    assert path.read_text() == "text" and [p.name for p in path.parent.iterdir()] == ["a.csv"]


def test_images_next_to_a_table_are_copied(bucket):
    for name in ("data/labels.csv", "data/eye.png", "photos/eye.png"):
        put(f"{bucket}/{name}", name)
    head, label = fetched_word(f"{bucket}/data/labels.csv,label=grade").split(",")
    assert label == "label=grade" and fetched(head).with_name("eye.png").is_file()
    head, images, _ = fetched_word(f"{bucket}/data/labels.csv,images={bucket}/photos,label=grade").split(",")
    assert (fetched(images.removeprefix("images=")) / "eye.png").read_text() == "photos/eye.png"
    assert fetched_word(f"array_record:{bucket}/photos").startswith("array_record:/")
    assert fetched_word("labels.csv,images=photos") == "labels.csv,images=photos"


def test_only_what_changed_is_uploaded_and_what_is_gone_removed(bucket, tmp_path):
    here = tmp_path / "out"
    (here / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt", "deep/last.txt", ".lock", "c.txt"):
        (here / name).write_text(name)
    known = upload(here, f"{bucket}/out", last=lambda name: name.endswith("last.txt"))
    store = list(fsspec.filesystem("memory").store)
    assert files(f"{bucket}/out").keys() == {"a.txt", "deep/b.txt", "deep/last.txt", "c.txt"}
    assert store[-1].endswith("last.txt")
    (here / "c.txt").unlink()
    (here / "a.txt").write_text("longer than before")
    before = files(f"{bucket}/out")
    upload(here, f"{bucket}/out", known)
    after = files(f"{bucket}/out")
    assert after.keys() == {"a.txt", "deep/b.txt", "deep/last.txt"}
    assert [name for name in after if after[name] != before[name]] == ["a.txt"]


def test_messages_name_the_address(bucket, monkeypatch):
    with pytest.raises(DataError, match="memory://bucket/none: nothing is stored there"):
        fetched(f"{bucket}/none")
    with pytest.raises(DataError, match="nowhere://bucket/x: ValueError: Protocol not known"):
        fetched("nowhere://bucket/x")

    def missing(address):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(
        DataError, match=r"gs:// needs a package: pip install -e '.\[remote\]' \(Please install gcsfs\)"
    ):
        fetched("gs://bucket/x")
