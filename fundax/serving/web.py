"""The web server: a page, /api/model and /api/predict, with limits on requests.

Photographs travel as base64 in JSON, not as a form: forms of more than a megabyte are kept in files, and nothing of a
client's is to reach the disk. Annotations are objects here, because FastAPI reads them."""

import base64
import binascii
import json
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.images import decode as files
from data_pipelines.records import DataError
from fundax.inference.model import Model
from fundax.serving.answers import (
    Kind,
    Question,
    check_question,
    data_uri,
    holds_probabilities,
    kind_of,
    maps_of,
    names_of,
    smaller,
)  # fmt: skip
from fundax.serving.calibration import Calibration
from fundax.serving.neighbours import Neighbours
from fundax.types import UserError

LOOPBACK = ("127.0.0.1", "localhost")
MIB = 2**20
MAPPED = 3  # answers whose maps are drawn
ABSENT = "serving a model needs FastAPI and uvicorn: pip install -e '.[serve]'"
RESEARCH = "For research only. This is not a medical device, and its answers must not guide the care of a patient."


@dataclass(frozen=True)
class Limits:
    """Limits of requests: megabytes and pixels of a photograph, and the number of waiting requests."""

    megabytes: float = 20
    pixels: int = 50_000_000
    waiting: int = 8


@dataclass(frozen=True, eq=False)
class Served:
    """A model with the additional information on the page."""

    model: Model
    classes: tuple[str, ...] = ()  # suggested on the page
    calibrations: Sequence[Calibration] = ()
    neighbours: Neighbours | None = None
    limits: Limits = Limits()
    lock: Any = field(default_factory=threading.Lock)  # one question is computed at a time

    @property
    def kind(self) -> Kind:
        return kind_of(self.model)


class Refused(Exception):
    """A refused request: an HTTP status and a message for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def app_of(served: Served, hosts: Sequence[str] = LOOPBACK) -> Any:
    """The FastAPI application. hosts: accepted host names, so that other web sites cannot send requests.

    Raises UserError without the extra `serve`, and for a model that cannot be shown.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import HTMLResponse, JSONResponse
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError as error:
        raise UserError(ABSENT) from error
    facts, waiting = facts_of(served), threading.BoundedSemaphore(served.limits.waiting)
    app = FastAPI(title="fundax", description=RESEARCH, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> JSONResponse:
        del request
        return JSONResponse({"error": str(error)}, status_code=error.status)

    @app.get("/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        return HTMLResponse(page_of(facts, nonce), headers=headers(nonce))

    @app.get("/api/model")
    def about() -> dict[str, Any]:
        return facts

    @app.post("/api/predict")
    async def predict(request: Request) -> JSONResponse:
        from starlette.concurrency import run_in_threadpool

        if not waiting.acquire(blocking=False):
            raise Refused(503, f"{served.limits.waiting} questions are waiting already; ask again in a moment")
        try:
            body = await body_of(request, served)
            found = await run_in_threadpool(answer, served, body)
        finally:
            waiting.release()
        return JSONResponse(found, headers={"Cache-Control": "no-store"})

    return app


def facts_of(served: Served) -> dict[str, Any]:
    """The answer of /api/model, from which the page is built."""
    model, kind = served.model, served.kind
    card = {name: model.card[name] for name in ("objective", "image_encoder", "parameters", "modality", "origin")}
    return {
        "model": card | {"name": str(model.source.get("name", ""))},
        "images": list(kind.places(model)),
        "classes": list(served.classes)
        if kind.in_words
        else list(names_of(model, Question({})))
        if _named(model)
        else [],
        "in_words": kind.in_words,
        "limits": {"megabytes": served.limits.megabytes, "pixels": served.limits.pixels},
        "calibrated": [one.name for one in served.calibrations],
        "neighbours": 0 if served.neighbours is None else len(served.neighbours.features),
        "notice": RESEARCH,
    }


def _named(model: Model) -> bool:
    return hasattr(model.objective, "classes") or hasattr(model.objective, "names")


async def body_of(request: Any, served: Served) -> Mapping[str, Any]:
    """The JSON of a request, read no further than the limit. Raises Refused."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise Refused(415, "expected JSON, see /openapi.json and docs/guide/serve.md")
    limit = int(served.limits.megabytes * MIB * len(served.kind.places(served.model)) * 4 / 3) + MIB
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Refused(413, f"the photographs are larger than {served.limits.megabytes:g} MB")
        parts.append(part)
    try:
        body = json.loads(b"".join(parts))
    except (ValueError, RecursionError):
        raise Refused(400, "the request is not JSON") from None
    if not isinstance(body, dict) or not isinstance(body.get("images"), dict):
        raise Refused(400, 'expected {"images": {NAME: BASE64}, "classes": [...]}')
    return body


def question_of(body: Mapping[str, Any], served: Served) -> Question:
    """Parse a request and decode its photographs in memory. Raises Refused naming what cannot be read."""
    classes, days = body.get("classes") or [], body.get("days") or 365.0
    if not isinstance(classes, list) or not all(
        isinstance(name, str) and 0 < len(name.strip()) <= 200 for name in classes
    ):
        raise Refused(400, "classes: expected a list of names of at most 200 characters")
    if not isinstance(days, int | float) or not 0 < days < 36_500:
        raise Refused(400, "days: expected a number of days ahead")
    names = tuple(name.strip() for name in classes)
    try:
        check_question(served.model, list(body["images"]), names)
    except UserError as error:
        raise Refused(422, str(error)) from error
    images = {name: photograph_of(name, text, served.limits) for name, text in body["images"].items()}
    return Question(images, names, bool(body.get("knowledge")), float(days))


def photograph_of(name: str, text: Any, limits: Limits) -> np.ndarray:
    """Decode a photograph u8 [H W 3] from base64. Raises Refused if it is too large or cannot be read."""
    try:
        data = base64.b64decode(str(text).partition("base64,")[2] or str(text), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"{name}: expected the file in base64") from None
    if len(data) > limits.megabytes * MIB:
        size = len(data) / MIB
        raise Refused(413, f"{name}: the file has {size:,.0f} MB; the limit is {limits.megabytes:g} MB")
    try:
        return files.load(data, reading=files.ReadOptions(max_pixels=limits.pixels))
    except DataError as error:
        line = str(error).removeprefix(f"an image of {len(data)} bytes: ").partition(", more than the limit")
        limit = f", more than the limit of {limits.pixels / 1e6:g} megapixels" if line[1] else ""
        raise Refused(422, f"{name}: {line[0]}{limit}") from error


def answer(served: Served, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request as JSON. Raises Refused."""
    question = question_of(body, served)
    try:
        with served.lock:
            found = served.kind.ask(served.model, question)
            texts = {name: one for name, one in found.items() if isinstance(one, str)}
            numbers = {name: np.asarray(one) for name, one in found.items() if name not in texts}
            names = names_of(served.model, question) if numbers else ()
            likely = _likeliest(numbers, names) if body.get("maps", True) else []
            maps = {title: one for name in likely for title, one in maps_of(served.model, question, name).items()}
            near = _near(served, question)
    except (UserError, DataError) as error:
        raise Refused(422, str(error)) from error
    calibration = next((one for one in served.calibrations if names and one.fits(names)), None)
    shares = holds_probabilities(served.model)
    first = next(iter(numbers), "")
    return {
        "texts": texts,
        "answers": [
            {
                "of": of,
                "probabilities": shares,
                "rows": _rows(names, row, shares, calibration if of == first and shares else None),
            }
            for of, row in numbers.items()
        ],
        "calibration": calibration.name if calibration and shares else "",
        "photographs": {name: data_uri(smaller(image)) for name, image in question.images.items()},
        "maps": maps,
        "neighbours": near,
        "notice": RESEARCH,
    }


def _rows(
    names: Sequence[str], values: np.ndarray, shares: bool, calibration: Calibration | None
) -> list[dict[str, Any]]:
    """The numbers by name: probabilities with the largest first, values in their units in the order of the model."""
    order = [int(k) for k in np.argsort(-values, kind="stable")] if shares else range(len(values))
    return [
        {"name": names[k], "value": float(values[k])}
        | ({"calibration": calibration.of(names[k], float(values[k]))} if calibration else {})
        for k in order
    ]


def _likeliest(numbers: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
    if not numbers:
        return []
    values = next(iter(numbers.values()))
    return [names[int(k)] for k in np.argsort(-values, kind="stable")[:MAPPED]]


def _near(served: Served, question: Question) -> list[dict[str, Any]]:
    if served.neighbours is None:
        return []
    first = next(iter(question.images.values()))
    return served.neighbours.nearest(served.model.encode_image([first])[0])


def page_of(facts: Mapping[str, Any], nonce: str) -> str:
    """Render the page as HTML."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return made.get_template("page.html").render(facts=facts, nonce=nonce)


def headers(nonce: str) -> dict[str, str]:
    """HTTP headers of the page: no external resources, only its own script, and no caching."""
    policy = f"default-src 'none'; img-src data: blob:; connect-src 'self'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
    return {
        "Content-Security-Policy": policy + "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def run(served: Served, host: str, port: int) -> None:
    """Serve until Ctrl-C. Raises UserError without the extra `serve`, and if the port is in use."""
    import socket

    app = app_of(served, LOOPBACK if host in LOOPBACK else ("*",))
    try:
        import uvicorn
    except ImportError as error:
        raise UserError(ABSENT) from error
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: expected 0 to {2**16 - 1}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be served from ({error.strerror}); give another --host or --port"
            ) from error
        print(f"http://{host}:{listening.getsockname()[1]}  (Ctrl-C stops). {RESEARCH}", flush=True)
        if host not in LOOPBACK:
            print(f"WARNING: other machines can reach {host}, without a password or encryption.", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])
