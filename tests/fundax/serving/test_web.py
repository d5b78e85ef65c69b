"""The served page and its API: answers equal to the library's, limits, and error messages for clients.

The last tests use the page as a person does, in a headless Chromium: drop a photograph, choose conditions, read."""

import base64
import importlib.util
import io
import json
import os
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from chromium import Browser, program
from PIL import Image

from data_pipelines.language import tokenizers
from fundax.inference.model import Model, load
from fundax.objectives.clip import MEAN, STD, clip
from fundax.serving.calibration import Calibration, calibrations
from fundax.serving.neighbours import Neighbours, open_neighbours
from fundax.serving.web import Limits, Refused, Served, facts_of, headers, page_of, photograph_of
from fundax.types import UserError

SHOWN = os.environ.get("FUNDAX_SCREENSHOTS", "")  # a folder that takes pictures of the page, to look at
OLD_RUN = Path(__file__).parents[2] / "system/old_runs/workdirs/clip_softmax.tar.xz"
CLASSES = ("normal", "glaucoma", "diabetic retinopathy")


@pytest.fixture(scope="module")
def model():
    words = tokenizers.bundled(16)
    objective = clip("smoke", vocab=words.vocab_size, context=16)
    batch = {"image": np.zeros((1, 32, 32, 3), np.uint8), "text": np.zeros((1, 16), np.int32)}
    facts = {"image_size": 32, "mean": MEAN, "std": STD, "resize": "squash", "interpolation": "bicubic"}
    params = jax.jit(objective.init)(jax.random.key(0), batch)[0]
    return Model(objective, params, facts, words, batch=4, source={"name": "tiny", "origin": "new"})


@pytest.fixture(scope="module")
def served(model):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 300)
    seen = Calibration("val", CLASSES, probabilities, np.eye(3)[rng.integers(0, 3, 300)])
    near = Neighbours(np.eye(4, 32, dtype=np.float32), {"image": np.array(["a.png", "b.png", "c.png", "d.png"])})
    return Served(model, CLASSES, [seen], near, Limits(megabytes=1, pixels=100_000))


@pytest.fixture(scope="module")
def client(served):
    pytest.importorskip("fastapi", reason="the server is of the extra serve")
    pytest.importorskip("httpx", reason="FastAPI's test client needs httpx")
    from fastapi.testclient import TestClient

    from fundax.serving.web import app_of

    with TestClient(app_of(served), base_url="http://127.0.0.1") as found:
        yield found


def picture(side=40, seed=0, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def encoded(data):
    return base64.b64encode(data).decode()


def test_an_answer_is_that_of_the_library(client, model):
    data = picture()
    reply = client.post("/api/predict", json={"images": {"image": encoded(data)}, "classes": list(CLASSES)})
    assert reply.status_code == 200, reply.text
    found = reply.json()
    rows = {row["name"]: row["value"] for row in found["answers"][0]["rows"]}
    np.testing.assert_allclose([rows[name] for name in CLASSES], model.zero_shot([data], CLASSES)[0], atol=1e-6)
    assert list(rows.values()) == sorted(rows.values(), reverse=True)
    assert found["calibration"] == "val"
    assert any(title.startswith("similarity") for title in found["maps"])
    assert found["maps"][next(iter(found["maps"]))].startswith("data:image/jpeg;base64,")
    assert len(found["neighbours"]) == 4 and found["neighbours"][0]["image"].endswith(".png")
    assert reply.headers["cache-control"] == "no-store"


def test_the_page_loads_nothing_from_elsewhere(client, served):
    reply = client.get("/")
    assert reply.status_code == 200 and "http://" not in reply.text and "https://" not in reply.text
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "connect-src 'self'" in policy
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert f'<script nonce="{nonce}">' in reply.text
    assert "research only" in reply.text and "glaucoma" in reply.text
    assert client.get("/api/model").json() == json.loads(json.dumps(facts_of(served)))
    assert client.get("/docs").status_code == 404


def bomb():
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("images", "status", "message"),
    [
        ({"image": encoded(bytes(2**20 + 2**19))}, 413, "the limit is 1 MB"),
        ({"image": encoded(b"these are words, not an image")}, 422, "image: not an image of a known format"),
        ({"image": encoded(bomb())}, 422, "20000 x 20000 pixels, more than the limit of 0.1 megapixels"),
        ({"image": encoded(picture()[:300])}, 422, "image: the image is damaged or cut short"),
        ({"image": "not base64!"}, 400, "image: expected the file in base64"),
        ({"macula": encoded(b"")}, 422, "macula is not a photograph of this model; expected image"),
        ({}, 422, "no photograph was given"),
    ],
    ids=["large", "text", "bomb", "cut", "base64", "place", "none"],
)
def test_what_is_refused_and_why(client, images, status, message):
    reply = client.post("/api/predict", json={"images": images, "classes": list(CLASSES)})
    assert reply.status_code == status
    assert message in reply.json()["error"]


def test_fifty_megabytes_are_not_even_read(client):
    def parts():
        for _ in range(50):
            yield b" " * 2**20

    reply = client.post("/api/predict", content=parts(), headers={"content-type": "application/json"})
    assert reply.status_code == 413 and "larger than 1 MB" in reply.json()["error"]


def test_other_requests_are_refused(client):
    sent = {"images": {"image": encoded(picture())}}
    for classes, message in (
        (["normal"], "2 to 200"),
        (["a", "a"], "2 to 200"),
        ([1], "list of names"),
        (["x" * 300], "200"),
    ):
        reply = client.post("/api/predict", json=sent | {"classes": classes})
        assert reply.status_code in (400, 422) and message in reply.json()["error"]
    assert client.post("/api/predict", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.post("/api/predict", content=b"a=b").status_code == 415
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400, "another web site's name"


def test_nothing_of_a_client_reaches_the_disk(client, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    reply = client.post("/api/predict", json={"images": {"image": encoded(picture(200))}, "classes": list(CLASSES)})
    assert reply.status_code == 200 and not list(tmp_path.iterdir())


def test_calibration_by_hand(tmp_path):
    probabilities = np.repeat(np.array([[0.9, 0.1], [0.2, 0.8]]), 20, axis=0)
    outcomes = np.eye(2)[np.r_[np.zeros(15, int), np.ones(25, int)]]  # 15 of the first 20 have the first class
    found = Calibration("val", ("a", "b"), probabilities, outcomes)
    high = found.of("a", 0.85)
    assert high["images"] == 20 and high["share"] == 0.75
    assert found.of("a", 0.1)["share"] == 0.0
    assert found.fits(["b", "a"]) and not found.fits(["a"])
    few = Calibration("val", ("a", "b"), probabilities[:4], outcomes[:4])
    assert few.of("a", 0.85) is None
    assert calibrations(tmp_path) == []


def test_neighbours_are_sorted_and_of_the_same_model(model, tmp_path):
    image = picture(seed=3)
    path = tmp_path / "eye.png"
    path.write_bytes(image)
    own = model.encode_image([image])[0]
    columns = {"image": np.array([str(path), "gone.png"]), "eye": np.array(["left", ""])}
    np.savez(tmp_path / "own.npz", features=np.stack([own, -own]), **columns)
    found = open_neighbours(model, tmp_path, str(tmp_path / "own.npz")).nearest(own)
    assert [round(one["similarity"], 4) for one in found] == [1, -1]
    assert found[0]["image"] == "eye.png" and found[0]["picture"].startswith("data:") and found[0]["eye"] == "left"
    assert found[1]["picture"] == "" and "eye" not in found[1]
    np.savez(tmp_path / "other.npz", features=np.stack([-own, own]), **columns)
    with pytest.raises(UserError, match="not features of this model"):
        open_neighbours(model, tmp_path, str(tmp_path / "other.npz"))
    with pytest.raises(UserError, match="no files of data"):
        open_neighbours(model, tmp_path, "data")
    assert open_neighbours(model, tmp_path, "") is None


def test_neighbours_of_the_run_s_own_data(tmp_path, capsys):
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / OLD_RUN.name.split(".")[0]
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(picture(seed=k))
    table = tmp_path / "eyes.csv"
    table.write_text("image,text,patient\n" + "".join(f"{k}.png,an eye,p{k}\n" for k in range(3)))
    config = json.loads((run / "config.json").read_text())
    config["args"] = config.get("args", {}) | {"data": [str(table)]}
    (run / "config.json").write_text(json.dumps(config))
    own = load(run)
    near = open_neighbours(own, run, "data").nearest(own.encode_image([picture(seed=1)])[0])
    assert near[0]["image"] == "1.png" and near[0]["patient"] == "p1" and near[0]["similarity"] > 0.999
    assert "features 3 x" in capsys.readouterr().out and (run / "neighbours.npz").exists()
    table.unlink()  # the features are kept
    assert len(open_neighbours(own, run, "data").features) == 3


def test_more_questions_than_may_wait_are_refused(served, monkeypatch):
    pytest.importorskip("fastapi", reason="the server is of the extra serve")
    pytest.importorskip("httpx", reason="FastAPI's test client needs httpx")
    from fastapi.testclient import TestClient

    from fundax.serving import web

    begun, go_on = threading.Event(), threading.Event()

    def slow(*_):
        begun.set()
        assert go_on.wait(30)
        return {}

    monkeypatch.setattr(web, "answer", slow)
    one = replace(served, limits=Limits(megabytes=1, pixels=100_000, waiting=1))
    sent = {"images": {"image": encoded(picture())}}
    with TestClient(web.app_of(one), base_url="http://127.0.0.1") as client, ThreadPoolExecutor(1) as others:
        first = others.submit(client.post, "/api/predict", json=sent)
        assert begun.wait(30)
        second = client.post("/api/predict", json=sent)
        go_on.set()
        assert first.result().status_code == 200
        assert second.status_code == 503 and "1 questions are waiting already" in second.json()["error"]
        assert client.post("/api/predict", json=sent).status_code == 200


def test_names_are_escaped_on_the_page(served):
    facts = facts_of(served) | {"classes": ["</script><script>alert(1)</script>"]}
    page = page_of(facts, "n")
    assert "<script>alert" not in page and headers("n")["Referrer-Policy"] == "no-referrer"


def test_a_file_is_measured_before_it_is_decoded():
    with pytest.raises(Refused, match=r"the limit is 0\.5 MB") as error:
        photograph_of("image", encoded(bytes(2**20)), Limits(megabytes=0.5))
    assert error.value.status == 413


# --------------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def address(served):
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        pytest.skip("the server is of the extra serve")
    import uvicorn

    from fundax.serving.web import app_of

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app_of(served), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)
    listening.close()


@pytest.fixture(scope="module")
def page(address, tmp_path_factory):
    if not program():
        pytest.skip("no Chromium on this machine")
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        found.call("Page.navigate", url=address)
        found.until("document.querySelector('#ask') !== null")
        yield found


def shown(page, name):
    if SHOWN:
        (Path(SHOWN) / f"{name}.png").write_bytes(page.picture())


DROP = """(async () => {
  const bytes = Uint8Array.from(atob("%s"), c => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "eye.png", {type: "image/png"}));
  document.querySelector(".place").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
})()"""


def test_drop_a_photograph_choose_conditions_and_read_the_answer(page):
    assert page.run("document.querySelector('#ask').disabled")
    page.run(DROP % encoded(picture(120)))
    page.until("!document.querySelector('#ask').disabled")
    page.run("document.querySelector('#classes').value = 'normal\\nglaucoma\\ndiabetic retinopathy'")
    page.run("document.querySelector('#ask').click()")
    page.until("document.querySelectorAll('#answers .row').length === 3")
    rows = page.run("[...document.querySelectorAll('#answers .row b')].map(b => b.textContent)")
    assert all(text.endswith("%") for text in rows)
    text = page.run("document.body.innerText")
    assert "For research only" in text and "Calibration: the run's own evaluation (val)" in text
    assert "evaluated images in which the model gave it" in text
    assert page.until("document.querySelectorAll('#maps img').length >= 4")  # the photograph and three maps
    assert page.run("document.querySelectorAll('#near figure').length") == 4
    page.until("[...document.querySelectorAll('img:not([hidden])')].every(one => one.complete && one.naturalWidth > 0)")
    shown(page, "answer")


def test_a_file_of_words_a_large_file_and_a_bomb_are_refused_in_words(page, tmp_path):
    words, large, small = tmp_path / "eye.jpg", tmp_path / "large.png", tmp_path / "small.png"
    words.write_text("these are words, not an image")
    with large.open("wb") as file:
        file.truncate(50 * 2**20)
    small.write_bytes(bomb())
    page.choose(".place input", large)
    page.until("document.querySelector('#error').textContent === 'large.png has 50 MB; the limit is 1 MB.'")
    assert page.run("document.querySelector('#ask').disabled")
    for path, message in ((words, "not an image of a known format"), (small, "more than the limit of 0.1 megapixels")):
        page.choose(".place input", path)
        page.until("!document.querySelector('#ask').disabled")
        page.run("document.querySelector('#ask').click()")
        page.until(f"document.querySelector('#error').textContent.includes('{message}')")
    assert page.run("document.querySelector('#answers').childElementCount") == 0, "no answer next to another photograph"
    shown(page, "refused")


def test_the_page_asks_for_nothing_outside(page, address):
    loaded = page.run("performance.getEntriesByType('resource').map(one => one.name)")
    assert all(name.startswith((address, "data:", "blob:")) for name in loaded)
