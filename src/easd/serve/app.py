"""The server's routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response, StreamingResponse

from easd.config import rule_to_dict
from easd.core.rules import make_rule, rule_names, summary_of
from easd.engine.engine import Engine
from easd.engine.generate import make_engine
from easd.engine.pair import Pair, provenance
from easd.engine.settings import Settings
from easd.errors import shown
from easd.inspect.page import content_security_policy, live_page
from easd.runs.texts import TokenTexts
from easd.serve.completions import Builder, ChatCompletionBuilder, CompletionBuilder
from easd.serve.decode_events import TraceEvents
from easd.serve.errors import ErrorResponse, Refusal, install_handlers, to_json
from easd.serve.limits import BODY_SECONDS, Guard
from easd.serve.logprobs import read_logprobs
from easd.serve.metrics import Metrics
from easd.serve.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DecodeRequest,
    OpenAIRequest,
    SamplingFields,
)
from easd.serve.responses import ChatCompletion, Completion, Model, Models
from easd.serve.scheduler import Job, Scheduler
from easd.serve.serving import Reader, Serving
from easd.serve.streaming import EventStream, while_connected

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": what}
    for status, what in {
        400: "Something in the request does not fit",
        401: "The API key is missing or wrong",
        404: "No such model",
        408: "The body did not come in time",
        413: "The body is too large",
        429: "The queue is full; Retry-After says when to try again",
        503: "The server is shutting down",
    }.items()
}

_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, or its events", "content": {"text/event-stream": {}}},
    **_ERRORS,
}


class App:
    """The server for one pair of models.

    Raises:
        EasdError: The server's settings do not fit the pair.
    """

    def __init__(self, pair: Pair, serving: Serving) -> None:
        self.pair = pair
        self.serving = serving
        self.name = serving.served_model_name or pair.name
        self.metrics = Metrics(self.name, serving.config.settings.most_gamma)
        self.scheduler = Scheduler(
            self._engine,
            num_rows=serving.num_rows,
            max_waiting=serving.max_queue,
            prefill_tokens=serving.prefill_tokens,
            metrics=self.metrics,
        )
        self._reader = Reader(pair, serving)
        self._texts = TokenTexts(pair.tokenizer)
        self._provenance = provenance(pair)
        self._started = int(time.time())
        # Tokenizing a long prompt takes a while and must not block the event loop.
        self._reading = ThreadPoolExecutor(1, "easd-tokenizer")

    def asgi(self) -> FastAPI:
        """Returns the ASGI application."""
        app = FastAPI(
            title="easd",
            version=version("easd"),
            lifespan=self._lifespan,
            docs_url=None,
            redoc_url=None,
        )
        install_handlers(app)
        app.add_middleware(
            Guard,
            hosts=self.serving.hosts,
            api_key=self.serving.api_key,
            max_body=self.serving.max_body,
            body_seconds=BODY_SECONDS,
        )
        self._add_routes(app)
        app.openapi = lambda: _openapi(app, self.name)
        return app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(self.scheduler.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        self._reading.shutdown(wait=False)

    def _add_routes(self, app: FastAPI) -> None:
        app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAMED)(
            self.chat
        )
        app.post("/v1/completions", response_model=Completion, responses=_STREAMED)(self.complete)
        app.get("/v1/models", response_model=Models)(self.models)
        app.get("/v1/models/{model:path}", response_model=Model, responses={404: _ERRORS[404]})(
            self.model
        )
        app.post("/easd/decode", response_class=StreamingResponse, responses=_STREAMED)(self.decode)
        app.get("/easd/rules")(self.rules)
        app.get("/health", responses={503: _ERRORS[503]})(self.health)
        app.get("/version")(self.version)
        app.get("/metrics", include_in_schema=False)(self.prometheus)
        app.get("/", include_in_schema=False)(self.page)

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """Answers a conversation."""
        self._check_name(body.model)
        job = await self._job(body, lambda: [self._reader.conversation(body.messages)], n=body.n)
        return await self._respond(ChatCompletionBuilder, job, body, request)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continues texts."""
        self._check_name(body.model)
        job = await self._job(body, lambda: self._reader.prompts(body.prompt), n=body.n)
        return await self._respond(CompletionBuilder, job, body, request)

    async def decode(self, body: DecodeRequest, request: Request) -> Response:
        """Decodes one text and streams its trace: events `run`, `rows` and `end`."""
        if body.model is not None:
            self._check_name(body.model)

        def read() -> list[list[int]]:
            if body.prompt is not None:
                return self._reader.prompts(body.prompt)
            return [self._reader.conversation(body.messages)]

        job = await self._job(body, read, n=1)
        config = replace(self.serving.config, settings=job.settings)
        trace = TraceEvents(self.pair, config, self._provenance, self._texts)
        job.observe = trace.observe
        self.scheduler.submit(job)
        return EventStream(trace.events(job), request, lambda: self.scheduler.cancel(job))

    async def models(self) -> Models:
        """Lists the served model."""
        return Models(data=[self._described()])

    async def model(self, model: str) -> Model:
        """Describes the served model."""
        self._check_name(model)
        return self._described()

    async def rules(self) -> dict[str, Any]:
        """Lists every rule with its fields, the default settings, and a prompt to try."""
        rules = {}
        for name in rule_names():
            rule = make_rule(name)
            if rule.lossless or not self.serving.lossless_only:
                rules[name] = {
                    "fields": {k: v for k, v in rule_to_dict(rule).items() if k != "name"},
                    "lossless": rule.lossless,
                    "summary": summary_of(name),
                }
        config = self.serving.config.to_dict()
        defaults = {field.name: config[field.name] for field in fields(Settings)}
        return {
            "rules": rules,
            "pair": self.name,
            "defaults": defaults,
            "example": self._reader.example(),
        }

    async def health(self) -> dict[str, str]:
        """Says whether new requests are accepted."""
        if not self.scheduler.accepting:
            raise Refusal(503, "the server is shutting down", code="shutting_down")
        return {"status": "ok"}

    async def version(self) -> dict[str, str]:
        """Returns the version of this package."""
        return {"version": version("easd")}

    async def prometheus(self) -> Response:
        """Returns metrics in Prometheus's text format."""
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")

    async def page(self) -> Response:
        """Returns the page, whose inline code may connect to this server only."""
        headers = {
            "Content-Security-Policy": content_security_policy(),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return Response(live_page(), media_type="text/html; charset=utf-8", headers=headers)

    def _engine(self, settings: Settings, num_rows: int) -> Engine:
        return make_engine(self.pair, settings, num_rows=num_rows)

    def _check_name(self, model: str) -> None:
        config = self.serving.config
        if model not in (self.name, self.pair.name, config.pair, config.target):
            raise Refusal(
                404,
                f"model {shown(model)} is not served here; use {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def _described(self) -> Model:
        return Model(id=self.name, created=self._started, max_model_len=self._reader.limit)

    async def _job(
        self, body: SamplingFields, read: Callable[[], list[list[int]]], *, n: int
    ) -> Job:
        """Returns a job for a body, whose prompts `read` returns in the tokenizer's thread."""
        settings = self._reader.settings(body, n=n)

        def make() -> Job:
            requests = self._reader.requests(body, read(), settings)
            top = body.num_logprobs
            return Job(requests, settings, None if top is None else partial(read_logprobs, top=top))

        return await asyncio.get_running_loop().run_in_executor(self._reading, make)

    async def _respond(
        self, kind: type[Builder[Any]], job: Job, body: OpenAIRequest, request: Request
    ) -> Response:
        builder = kind(
            job,
            model=self.name,
            tokenizer=self.pair.tokenizer,
            texts=self._texts,
            include_usage=body.stream_options.include_usage,
        )
        self.scheduler.submit(job)
        if body.stream:
            return EventStream(builder.events(), request, lambda: self.scheduler.cancel(job))
        try:
            whole = await while_connected(request, builder.whole())
        finally:
            self.scheduler.cancel(job)
        if whole is None:
            return Response(status_code=499)  # The client has disconnected.
        return Response(to_json(whole.model_dump()), media_type="application/json")


def _openapi(app: FastAPI, model: str) -> dict[str, Any]:
    """Returns FastAPI's schema with the served model's name and without 422 responses."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for body in (ChatCompletionRequest, CompletionRequest):
            schema["components"]["schemas"][body.__name__]["properties"]["model"]["enum"] = [model]
        app.openapi_schema = schema
    return app.openapi_schema
