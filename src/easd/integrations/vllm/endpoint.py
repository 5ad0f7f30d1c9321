"""`GET /easd/metrics`: the workers' counts in Prometheus's text format.

A route of its own, because vLLM's `/metrics` shows what the server's process counts and the gate is
asked in others. vLLM loads it where `VLLM_PLUGINS` names `easd`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from easd.integrations.vllm import KEY

HELP = {
    "examined": "Draft tokens up to and including the first refusal, in requests with a rule.",
    "draft_entropy": "Examined draft tokens where the draft's entropy exceeds tau_h.",
    "target_entropy": "Examined draft tokens where the target's entropy exceeds tau_h.",
    "overlap": "Examined draft tokens where the top tokens overlap by tau_o or more.",
    "penalised": "Examined draft tokens that an open gate refused.",
    "unasked": "Draft tokens that vLLM verified without draft probabilities.",
}


class Endpoint:
    """vLLM's `EndpointPlugin`."""

    name = "easd"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        @app.get("/easd/metrics", response_class=PlainTextResponse)
        async def metrics() -> str:
            client = app.state.easd_client
            if client is None:
                return "# easd is not configured in this server\n"
            # Every worker of a tensor-parallel group verifies the same tokens.
            return prometheus_text((await client.collective_rpc("easd_statistics"))[0])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        configured = KEY in (engine_client.vllm_config.additional_config or {})
        state.easd_client = engine_client if configured else None


def prometheus_text(counts: dict[str, int]) -> str:
    """Counters `easd_<name>_total`."""
    lines = []
    for name, count in counts.items():
        metric = f"easd_{name}_total"
        lines += [f"# HELP {metric} {HELP[name]}", f"# TYPE {metric} counter", f"{metric} {count}"]
    return "\n".join(lines) + "\n"
