"""The gate's counts on the server's `/metrics`, after vLLM's metrics.

The counts are kept by the sampler, so each scrape asks the engines for them. vLLM lets endpoint
plugins replace a route, but loads those of packages only where `VLLM_PLUGINS` names them, and warns
about them in every other server. This one is therefore added when an engine is configured.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from vllm.v1.engine.exceptions import EngineDeadError  # pyright: ignore

from easd.integrations.vllm.compatibility import METRICS, check_functions

SECONDS = 5
"""Maximum time that a scrape waits for the engines, which answer between two steps."""

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
    """Makes servers that start later in this process show the counts.

    Raises:
        ConfigError: This vLLM has no such plugins.
    """
    check_functions(METRICS)
    from vllm import plugins  # pyright: ignore

    stock: Any = plugins.load_endpoint_plugins
    if getattr(stock, "adds_easd", False):
        return

    def load_endpoint_plugins(*args: Any, **kwargs: Any) -> list[Any]:
        return [*stock(*args, **kwargs), Endpoint()]

    load_endpoint_plugins.adds_easd = True  # type: ignore[attr-defined]
    plugins.load_endpoint_plugins = load_endpoint_plugins


class Endpoint:
    """An `EndpointPlugin` of vLLM that adds the counts to `/metrics`."""

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
            except (TimeoutError, EngineDeadError) as error:  # vLLM's metrics then matter most.
                logger.warning("easd: /metrics without the gate's counts (%r)", error)
                return response
            body = response.body + prometheus_text(counts).encode()
            return Response(body, media_type=response.headers["content-type"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        state.easd_client = engine_client


async def _counts(client: Any) -> dict[int, dict[str, int]]:
    """Returns each engine's counts by its rank; with data parallelism there are several."""
    core = client.engine_core
    answers = await core.call_utility_all_async("collective_rpc", "easd_statistics", None, (), None)
    # All workers of a tensor-parallel group verify the same tokens; in a pipeline the last does.
    counts = [workers[-1] for workers in answers]
    return dict(zip(core.engine_ranks_managed, counts, strict=True))


def prometheus_text(counts: dict[int, dict[str, int]]) -> str:
    """Formats counters `easd_<name>_total`, labelled by engine as vLLM's are."""
    lines = []
    for name, text in HELP.items():
        metric = f"easd_{name}_total"
        lines += [f"# HELP {metric} {text}", f"# TYPE {metric} counter"]
        lines += [f'{metric}{{engine="{rank}"}} {found[name]}' for rank, found in counts.items()]
    return "\n".join(lines) + "\n"
