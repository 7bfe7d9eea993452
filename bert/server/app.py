"""The HTTP application: the routes, and what they answer.

Every request passes the `Gate`, then a route; a route asks a `Model`, whose `Worker` computes.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from bert import __version__
from bert.server.batching import Answer
from bert.server.bodies import (
    EmbeddingsBody,
    PairsBody,
    PredictBody,
    RerankBody,
    TextsBody,
    refusal_of,
)
from bert.server.gate import Gate
from bert.server.metrics import Metrics
from bert.server.models import Model
from bert.server.reference import reference
from bert.server.refusals import ErrorAnswer, Refusal, answer
from bert.server.settings import ServerSettings

if TYPE_CHECKING:
    from bert.predictor import Predictor


class PredictAnswer(BaseModel):
    """One prediction for each row, in the same order."""

    model: str
    predictions: list[dict[str, Any]]


class EmbedAnswer(BaseModel):
    """One vector for each text, in the same order."""

    model: str
    embeddings: list[list[float]]


class SimilarityAnswer(BaseModel):
    """One score for each pair, in the same order."""

    model: str
    scores: list[float]


class Ranked(BaseModel):
    """One of the texts: its number, from 0, and how near it is to the query."""

    index: int
    score: float


class RerankAnswer(BaseModel):
    """The texts by how near they are to the query, the nearest first."""

    model: str
    results: list[Ranked]


class Token(BaseModel):
    """A token, and where it stands in the text, in characters."""

    id: int
    text: str
    start: int
    end: int


class TokenizeAnswer(BaseModel):
    """The tokens of each text, the special ones too."""

    model: str
    tokens: list[list[Token]]


class OpenAIEmbedding(BaseModel):
    """A vector, as numbers or as the base64 of little-endian fp32."""

    object: str
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """What it took."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """As OpenAI has it."""

    object: str
    data: list[OpenAIEmbedding]
    model: str
    usage: Usage


class ModelFacts(BaseModel):
    """What can be told of a model."""

    id: str
    object: str
    task: str
    labels: list[str]
    texts_per_row: int
    max_length: int
    precision: str
    routes: list[str]


class ModelsAnswer(BaseModel):
    """The models that are served, the first being the one that answers if none is named."""

    object: str
    data: list[ModelFacts]


class InfoAnswer(BaseModel):
    """The version, the models and the limits."""

    version: str
    models: list[ModelFacts]
    limits: dict[str, int | str]


class StatusAnswer(BaseModel):
    """How it is."""

    status: str


LIMITS = (
    "max_concurrent_requests",
    "max_client_batch_size",
    "max_text_chars",
    "max_body_bytes",
    "max_queue_tokens",
    "queue_timeout_ms",
    "request_timeout_ms",
    "on_too_long",
)
ALWAYS = (400, 500)
TELLS = (*ALWAYS, 401)
COMPUTES = (*TELLS, 404, 408, 413, 415, 422, 429, 504)


def create_app(
    predictors: Mapping[str, Predictor], settings: ServerSettings | None = None
) -> FastAPI:
    """The application that serves some predictors; ``app.state.models`` are they.

    Args:
        predictors: by name; the first answers requests that name none.
        settings: limits and so on.
    """
    settings = settings or ServerSettings.of({})
    metrics = Metrics()
    models = {
        name: Model(name, predictor, settings, metrics) for name, predictor in predictors.items()
    }
    pool = ThreadPoolExecutor(2, thread_name_prefix="tokenize")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for model in models.values():
            model.worker.start()
        yield
        pool.shutdown(wait=False, cancel_futures=True)

    # The documentation pages of FastAPI load their scripts from a CDN.
    app = FastAPI(
        title="bert",
        summary="Models over HTTP.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.models = models
    app.state.draining = False
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    _refusals(app, metrics)
    checks = _key_checks(settings.api_key)
    app.include_router(_asking(models, pool), dependencies=checks)
    app.include_router(_telling(models, settings, metrics), dependencies=checks)
    app.include_router(_open(app, models))
    return app


def _responses(statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer} for status in statuses}


def _key_checks(api_key: str | None) -> list[Any]:
    """What refuses requests without the key, if there is one."""
    if api_key is None:
        return []
    bearer = HTTPBearer(auto_error=False, description="The key that the server was started with.")
    expected = api_key.encode()

    async def check(request: Request) -> None:
        found = await bearer(request)
        given = "" if found is None else found.credentials
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected):
            raise Refusal(
                401, "wrong_key", "The key is missing or wrong.", "Authorization: Bearer KEY"
            )

    # The first is for the schema only: it refuses nothing.
    return [Depends(bearer), Depends(check)]


def _refusals(app: FastAPI, metrics: Metrics) -> None:
    """What becomes of errors."""

    def refuse(request: Request, refusal: Refusal) -> Response:
        metrics.refused.labels(refusal.kind).inc()
        return refusal.response(request.url.path)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return refuse(request, refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refuse(request, refusal_of(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return refuse(request, Refusal(404, "not_found", "There is nothing at this address."))
        if error.status_code == 405:
            response = refuse(
                request, Refusal(405, "method_not_allowed", "This address takes another method.")
            )
            response.headers.update(error.headers or {})
            return response
        # What is left is a body that FastAPI could not read: nested too deep, not UTF-8.
        return refuse(request, Refusal(400, "malformed_json", "The body cannot be read as JSON."))


def _chosen(models: Mapping[str, Model], name: str | None, route: str) -> Model:
    """The model that a request asks for.

    Raises:
        Refusal: there is none, or it does not do that.
    """
    model = next(iter(models.values())) if name is None else models.get(name)
    if model is None:
        raise Refusal(
            404,
            "model_not_found",
            "There is no model of this name.",
            f"Models: {', '.join(models)}.",
        )
    if route not in model.routes:
        able = [other.name for other in models.values() if route in other.routes]
        raise Refusal(
            422,
            "invalid_request",
            f"The model {model.name} is for {model.task}; it has no {route}.",
            f"Name one that has: {', '.join(able)}." if able else f"Use {model.routes[0]}.",
        )
    return model


def _asking(models: Mapping[str, Model], pool: ThreadPoolExecutor) -> APIRouter:
    """The routes that compute."""
    router = APIRouter()
    responses = _responses(COMPUTES)

    @router.post("/predict", response_model=PredictAnswer, responses=responses)
    async def predict(body: PredictBody, request: Request) -> Response:
        """Answer each row: a text, a pair of texts, or as many as the model takes."""
        model = _chosen(models, body.model, "/predict")
        rows, field = _rows(body)
        found = await model.ask(request, rows, field, pool)
        predictions = [model.predictor.task.written(each) for each in found.answers]
        return answer({"model": model.name, "predictions": predictions})

    @router.post("/fill-mask", response_model=PredictAnswer, responses=responses)
    async def fill_mask(body: TextsBody, request: Request) -> Response:
        """Guess the masked words of each text."""
        model = _chosen(models, body.model, "/fill-mask")
        found = await model.ask(request, body.texts, "texts", pool)
        return answer({"model": model.name, "predictions": found.answers})

    @router.post("/embed", response_model=EmbedAnswer, responses=responses)
    async def embed(body: TextsBody, request: Request) -> Response:
        """Give each text a vector."""
        model = _chosen(models, body.model, "/embed")
        found = await model.ask(request, body.texts, "texts", pool)
        vectors = [each["embedding"] for each in found.answers]
        return answer({"model": model.name, "embeddings": vectors})

    @router.post("/similarity", response_model=SimilarityAnswer, responses=responses)
    async def similarity(body: PairsBody, request: Request) -> Response:
        """Say how alike the two texts of each pair are."""
        model = _chosen(models, body.model, "/similarity")
        found = await model.ask(request, body.pairs, "pairs", pool)
        return answer({"model": model.name, "scores": _scores(model, found.answers)})

    @router.post("/rerank", response_model=RerankAnswer, responses=responses)
    async def rerank(body: RerankBody, request: Request) -> Response:
        """Order texts by how near they are to a query."""
        model = _chosen(models, body.model, "/rerank")
        if model.task == "embedding":
            # The query comes last, so that messages count the texts as the request does.
            found = await model.ask(request, [*body.texts, body.query], "texts", pool, extra=1)
            vectors = np.array([each["embedding"] for each in found.answers])
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            scores = (vectors[:-1] @ vectors[-1]).tolist()
        else:
            pairs = [(body.query, text) for text in body.texts]
            scores = _scores(model, (await model.ask(request, pairs, "texts", pool)).answers)
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        results = [{"index": index, "score": scores[index]} for index in order]
        return answer({"model": model.name, "results": results})

    @router.post("/tokenize", response_model=TokenizeAnswer, responses=responses)
    async def tokenize(body: TextsBody, request: Request) -> Response:
        """Show the tokens of each text."""
        model = _chosen(models, body.model, "/tokenize")
        tokens = await model.tokens(request, body.texts, pool)
        return answer({"model": model.name, "tokens": tokens})

    @router.post("/v1/embeddings", response_model=EmbeddingsAnswer, responses=responses)
    async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
        """Give each text a vector, as OpenAI does."""
        model = _chosen(models, body.model, "/v1/embeddings")
        found = await model.ask(request, body.input, "input", pool)
        vectors: list[Any] = [each["embedding"] for each in found.answers]
        if body.dimensions not in (None, len(vectors[0])):
            raise Refusal(
                422,
                "invalid_request",
                f"dimensions must be {len(vectors[0])} for this model.",
                "Leave it out.",
            )
        if body.encoding_format == "base64":
            packed = (np.asarray(vector, dtype="<f4").tobytes() for vector in vectors)
            vectors = [base64.b64encode(each).decode() for each in packed]
        return answer(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": vector}
                    for index, vector in enumerate(vectors)
                ],
                "model": model.name,
                "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
            }
        )

    return router


def _rows(body: PredictBody) -> tuple[Sequence[Any], str]:
    """The rows of a request, and what it calls them."""
    if body.texts is not None:
        return body.texts, "texts"
    if body.pairs is not None:
        return body.pairs, "pairs"
    assert body.rows is not None
    return body.rows, "rows"


def _scores(model: Model, answers: Iterable[Answer]) -> list[float]:
    """How alike the two texts of pairs are, as the model says it."""
    name = "similarity" if model.task == "embedding" else "score"
    return [each[name] for each in answers]


def _telling(models: Mapping[str, Model], settings: ServerSettings, metrics: Metrics) -> APIRouter:
    """The routes that tell about the server."""
    router = APIRouter()

    @router.get("/v1/models", response_model=ModelsAnswer, responses=_responses(TELLS))
    async def list_models() -> Response:
        """What is served."""
        facts = [model.facts() for model in models.values()]
        return answer({"object": "list", "data": facts})

    @router.get("/info", response_model=InfoAnswer, responses=_responses(TELLS))
    async def info() -> Response:
        """The version, the models and the limits."""
        return answer(
            {
                "version": __version__,
                "models": [model.facts() for model in models.values()],
                "limits": {name: getattr(settings, name) for name in LIMITS},
            }
        )

    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {}}, "description": "Lines of figures."}
    }

    @router.get("/metrics", response_class=Response, responses=text | _responses(TELLS))
    async def show_metrics() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _open(app: FastAPI, models: Mapping[str, Model]) -> APIRouter:
    """The routes that anybody may have: whether it lives, and what is the same everywhere."""
    router = APIRouter()

    @router.get("/health", response_model=StatusAnswer, responses=_responses(ALWAYS))
    async def health() -> Response:
        """Whether the process answers."""
        return answer({"status": "ok"})

    @router.get("/ready", response_model=StatusAnswer, responses=_responses((*ALWAYS, 503)))
    async def ready() -> Response:
        """Whether every model computed something in the last 30 seconds."""
        if app.state.draining:
            raise Refusal(503, "not_ready", "The server is about to end.")
        if not all(model.worker.ready() for model in models.values()):
            raise Refusal(503, "not_ready", "A model does not compute.")
        return answer({"status": "ready"})

    for path, file, media_type in (
        ("/", "page.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
    ):
        content = (Path(__file__).parent / file).read_bytes()
        _add_page(router, path, Response(content, media_type=media_type))

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(reference(app.openapi()), media_type="text/html")

    return router


def _add_page(router: APIRouter, path: str, page: Response) -> None:
    """Serve one file that never changes."""

    @router.get(path, include_in_schema=False)
    async def static() -> Response:
        return page
