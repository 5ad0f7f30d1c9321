"""The gate's counts on the server's `/metrics`, behind vLLM's own.

They are kept where the sampler runs, so each scrape asks the engines for them. vLLM lets endpoint
plugins take a route's place, but loads those of packages only where `VLLM_PLUGINS` names them, and
warns of them in every server that does not; so ours is handed over by the engine's configuration.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from vllm.v1.engine.exceptions import EngineDeadError  # pyright: ignore

from easd.integrations.vllm.seams import METRICS, check_seams

SECONDS = 5
"""How long a scrape waits for engines, which answer between two steps."""

HELP = {
    "examined": "Draft tokens up to and including the first refusal, in requests with a rule.",
    "draft_entropy": "Examined draft tokens where the draft's entropy exceeds tau_h.",
    "target_entropy": "Examined draft tokens where the target's entropy exceeds tau_h.",
    "overlap": "Examined draft tokens where the top tokens overlap by tau_o or more.",
    "penalised": "Examined draft tokens that an open gate refused.",
    "unasked": "Draft tokens that vLLM verified without draft probabilities.",
}

logger = logging.getLogger("vllm.easd")


def count_in_metrics() -> None:
    """Has a server that starts in this process from now on show the counts.

    Raises:
        ConfigError: This vLLM has no such plugins.
    """
    check_seams(METRICS)
    from vllm import plugins  # pyright: ignore

    stock: Any = plugins.load_endpoint_plugins
    if getattr(stock, "adds_easd", False):
        return

    def load_endpoint_plugins(*args: Any, **kwargs: Any) -> list[Any]:
        return [*stock(*args, **kwargs), Endpoint()]

    load_endpoint_plugins.adds_easd = True  # type: ignore[attr-defined]
    plugins.load_endpoint_plugins = load_endpoint_plugins


class Endpoint:
    """vLLM's `EndpointPlugin`."""

    name = "easd"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        stock = next(
            route.endpoint
            for route in app.routes
            if isinstance(route, APIRoute) and route.path == "/metrics"
        )

        @app.get("/metrics")
        async def metrics(request: Request) -> Response:
            response = await run_in_threadpool(stock, request)
            try:
                counts = await asyncio.wait_for(_counts(app.state.easd_client), SECONDS)
            except (TimeoutError, EngineDeadError) as error:  # vLLM's own are wanted all the more
                logger.warning("easd: /metrics without the gate's counts (%r)", error)
                return response
            body = response.body + prometheus_text(counts).encode()
            return Response(body, media_type=response.headers["content-type"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        state.easd_client = engine_client


async def _counts(client: Any) -> dict[int, dict[str, int]]:
    """What each engine counted, by its rank; with data parallelism there are several."""
    core = client.engine_core
    answers = await core.call_utility_all_async("collective_rpc", "easd_statistics", None, (), None)
    # Every worker of a tensor-parallel group verifies the same tokens, of a pipeline the last.
    counts = [workers[-1] for workers in answers]
    return dict(zip(core.engine_ranks_managed, counts, strict=True))


def prometheus_text(counts: dict[int, dict[str, int]]) -> str:
    """Counters `easd_<name>_total`, labelled by engine as vLLM's are."""
    lines = []
    for name, said in HELP.items():
        metric = f"easd_{name}_total"
        lines += [f"# HELP {metric} {said}", f"# TYPE {metric} counter"]
        lines += [f'{metric}{{engine="{rank}"}} {found[name]}' for rank, found in counts.items()]
    return "\n".join(lines) + "\n"
