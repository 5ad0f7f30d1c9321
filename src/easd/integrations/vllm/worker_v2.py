"""Rules in workers with vLLM's V2 model runner, the default on CUDA.

V2 keeps the draft's logits before the temperature, of all requests in one tensor [slots, K, V]; a
request has a slot as long as it runs. Three functions are changed, and a fourth, the speculator's
`propose`, where drafts have a temperature of their own; the first two on objects of one engine, the
last so that it acts in calls of that engine only:

* `Sampler.add_request` looks up the rule of the request that gets a slot;
* `RejectionSampler._verify` passes on the slots of a step;
* `rejection_sample` applies the rules before the stock kernels run.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce, wraps
from operator import or_
from typing import Any

import torch
from torch import Tensor

from easd.core.rules import Rule
from easd.errors import ConfigError
from easd.integrations.vllm.batch import Batch
from easd.integrations.vllm.compatibility import SECOND_RUNNER, check_functions
from easd.integrations.vllm.drafted_v2 import Drafted, ask_all, draw_from_laws, penalised
from easd.integrations.vllm.gate import Gates, Tally
from easd.integrations.vllm.laws import last_drafts
from easd.integrations.vllm.serving import Serving

logger = logging.getLogger("vllm.easd")

_rows: ContextVar[Rows | None] = ContextVar("easd_rows_v2", default=None)


class Slots:
    """The rule of each slot's request, and the last step's rules on the device."""

    def __init__(self, serving: Serving, count: int, device: torch.device) -> None:
        self.tally = Tally(device)
        self._serving = serving
        self._device = device
        self._rules: list[Rule | None] = [None] * count
        self._greedy = [False] * count
        self._last: tuple[tuple[Rule | None, ...], Batch | None] = ((), None)

    def add(self, slot: int, sampling_params: Any) -> None:
        """Stores the rule of the request that got `slot`."""
        self._rules[slot] = self._serving.rule_for(sampling_params.extra_args)
        self._greedy[slot] = sampling_params.temperature == 0

    def batch(self, slots: Sequence[int]) -> Rows | None:
        """Returns the rules of the rows with these slots; None where no row has one."""
        wanted = tuple(self._rules[slot] for slot in slots)
        if wanted != self._last[0]:
            batch = Batch.of(wanted, self._serving, self.tally, self._device)
            self._last = (wanted, batch)
        batch = self._last[1]
        return None if batch is None else Rows(batch, any(self._greedy[slot] for slot in slots))


@dataclass(frozen=True, slots=True)
class Rows:
    """The rules of a step's rows, and whether any row is greedy."""

    batch: Batch
    any_greedy: bool


def attach(worker: Any, serving: Serving) -> None:
    """Changes the sampler of a worker with a new V2 model runner.

    It does so after vLLM's warm-up, which sends requests without rules.

    Raises:
        ConfigError: This vLLM lacks a function that the plugin relies on.
    """
    check_functions(SECOND_RUNNER)
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler  # pyright: ignore

    if not getattr(rejection_sampler.rejection_sample, "asks_easd", False):
        rejection_sampler.rejection_sample = gated(rejection_sampler.rejection_sample)
    runner = worker.model_runner
    runner.easd = Slots(serving, runner.max_num_reqs, runner.device)
    stock = worker.compile_or_warm_up_model

    def compile_or_warm_up_model() -> Any:
        result = stock()
        if runner.rejection_sampler is not None:  # Only the last stage of a pipeline has one.
            check_speculator(runner)
            follow(runner.easd, runner.rejection_sampler)
            draw_drafts(runner.speculator, serving.draft_temperature)
            logger.info("easd: in the sampler of this worker")
        return result

    worker.compile_or_warm_up_model = compile_or_warm_up_model


def check_speculator(runner: Any) -> None:
    """Refuses a drafter that keeps no draft logits.

    Raises:
        ConfigError: It keeps none.
    """
    if getattr(runner.speculator, "draft_logits", None) is None:
        raise ConfigError(
            f"{type(runner.speculator).__name__} keeps no draft probabilities, which rules look "
            "at; draft with another method"
        )


def draw_drafts(speculator: Any, draft_temperature: float | None) -> None:
    """Makes a speculator draw at `draft_temperature`; it keeps logits before any temperature.

    Raises:
        ConfigError: This vLLM's speculator takes no temperature.
    """
    if draft_temperature is None:
        return
    stock = speculator.propose
    arguments = inspect.signature(stock)
    if "temperature" not in arguments.parameters:
        raise ConfigError(
            f"{type(speculator).__name__} of this vLLM takes no temperature; leave out "
            "draft_temperature"
        )

    @wraps(stock)
    def propose(*args: Any, **kwargs: Any) -> Any:
        given = arguments.bind(*args, **kwargs)
        temperature = given.arguments["temperature"]
        given.arguments["temperature"] = proposing(temperature, draft_temperature)
        return stock(*given.args, **given.kwargs)

    speculator.propose = propose


def proposing(temperature: Tensor, draft_temperature: float | None) -> Tensor:
    """Returns the temperature that drafts are drawn at; greedy requests keep their 0."""
    if draft_temperature is None:
        return temperature
    return torch.where(temperature == 0, 0.0, draft_temperature).to(temperature.dtype)


def follow(slots: Slots, verifier: Any) -> None:
    """Makes one engine's `RejectionSampler` and `Sampler` pass requests and steps to `slots`."""
    add, verify = verifier.sampler.add_request, verifier._verify

    def add_request(req_idx: int, sampling_params: Any) -> None:
        slots.add(req_idx, sampling_params)
        add(req_idx, sampling_params)

    def _verify(
        logits: Tensor,
        draft_logits: Tensor,
        draft_sampled: Tensor,
        pos: Tensor,
        cu_num_logits: Tensor,
        idx_mapping: Tensor,
        idx_mapping_np: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        rest = draft_sampled, pos, cu_num_logits, idx_mapping, idx_mapping_np, *args
        token = _rows.set(slots.batch(idx_mapping_np.tolist()))
        try:
            return verify(logits, draft_logits, *rest, **kwargs)
        finally:
            _rows.reset(token)

    verifier.sampler.add_request = add_request
    verifier._verify = _verify


def gated(stock: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns a `rejection_sample` that applies the rules first, in engines that have one."""

    @wraps(stock)
    def rejection_sample(
        target_logits: Tensor,
        draft_logits: Tensor,
        draft_sampled: Tensor,
        cu_num_logits: Tensor,
        pos: Tensor,
        idx_mapping: Tensor,
        expanded_idx_mapping: Tensor,
        expanded_local_pos: Tensor,
        temperature: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        layout = cu_num_logits, pos, idx_mapping, expanded_idx_mapping, expanded_local_pos

        rows = _rows.get()
        # The target's logits are at the requests' temperature already.
        draft_temperature = None if rows is None else rows.batch.draft_temperature
        drawn_at = proposing(temperature, draft_temperature)

        def verify(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return stock(logits, draft_logits, tokens, *layout, drawn_at, *args, **kwargs)

        drafted_any = draft_sampled.shape != idx_mapping.shape
        if rows is None or not drafted_any or not rows.batch.has_rules:
            return verify(target_logits, draft_sampled)
        batch = rows.batch
        drafted = Drafted.of(draft_sampled, cu_num_logits, idx_mapping)
        found: list[Gates] = []
        logits, tokens, redrawn = target_logits, draft_sampled, None
        if batch.laws:
            logits, gates = draw_from_laws(
                batch, drafted, draft_logits, target_logits, temperature, rows.any_greedy
            )
            found.append(gates)
        penalties: AbstractContextManager[None] = nullcontext()
        if batch.published:
            gates = ask_all(batch, drafted, draft_logits, target_logits, temperature)
            penalties = penalised(gates.open, drafted, draft_logits, logits)
            found.append(gates)
        gates = reduce(or_, found)
        if batch.redraws is not None:
            counts = cu_num_logits.diff().long() - 1
            redrawn = gates.asked & last_drafts(
                counts, batch.redraws, drafted.row, drafted.position
            )
            # The kernels refuse -1 and draw its replacement from the unchanged logits.
            tokens = draft_sampled.index_put(
                (drafted.at + 1,), draft_sampled[drafted.at + 1].masked_fill(redrawn, -1)
            )
        with penalties:
            sampled, num_sampled = verify(logits, tokens)
        batch.tally.add(gates, drafted.row, drafted.position, num_sampled, redrawn)
        return sampled, num_sampled

    rejection_sample.asks_easd = True  # type: ignore[attr-defined]
    return rejection_sample
