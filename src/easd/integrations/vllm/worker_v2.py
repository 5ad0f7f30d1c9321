"""EASD in workers that run vLLM's V2 model runner, CUDA's default.

V2 keeps what the draft said as logits before the temperature, of all requests in one tensor
[slots, K, V]; a request has a slot as long as it runs. Three places are changed, two of one
engine's own objects and the last in calls of that engine only:

* `Sampler.add_request` finds the rule of the request that gets a slot;
* `RejectionSampler._verify` says which slots a step is about;
* `rejection_sample` asks the gate before the stock kernels run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from easd.core.rules import EASD
from easd.integrations.vllm.batch import Batch
from easd.integrations.vllm.gate import Gates, Tally, ask, rows_of
from easd.integrations.vllm.seams import check_signatures
from easd.integrations.vllm.serving import Serving

CERTAIN = 6e4
"""A draft logit beside which all others vanish: a softmax of exactly 1 at any temperature below
100. Half precision holds it, and float32 its quotient by vLLM's lowest temperature, 0.01."""

LOGITS_AT_ONCE = 2**26
"""How many entries of the vocabulary the gate is asked about at a time, to bound its memory."""

logger = logging.getLogger("vllm.easd")

_batch: ContextVar[Batch | None] = ContextVar("easd_batch_v2", default=None)


class Slots:
    """The rule of each slot's request, and the step's rules on the device."""

    def __init__(self, serving: Serving, count: int, device: torch.device) -> None:
        self.tally = Tally(device)
        self._serving = serving
        self._device = device
        self._rules: list[EASD | None] = [None] * count
        self._last: tuple[tuple[EASD | None, ...], Batch | None] = ((), None)

    def add(self, slot: int, sampling_params: Any) -> None:
        """Notes the rule of the request that got `slot`."""
        self._rules[slot] = self._serving.rule_for(sampling_params.extra_args)

    def batch(self, slots: Sequence[int]) -> Batch | None:
        """The rules of the rows with these slots; None where no row has one."""
        wanted = tuple(self._rules[slot] for slot in slots)
        if wanted != self._last[0]:
            self._last = (wanted, Batch.of(wanted, self.tally, self._device))
        return self._last[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """The N draft tokens of a step's B rows, and where vLLM keeps what belongs to each."""

    row: Tensor  # int64 [N], in the batch
    position: Tensor  # int64 [N], in the row's draft
    slot: Tensor  # int64 [N], with `position` the place in the draft's logits
    at: Tensor  # int64 [N], in the target's logits
    token: Tensor  # int64 [N]; -1 is a placeholder

    @classmethod
    def of(cls, tokens: Tensor, cu_num_logits: Tensor, idx_mapping: Tensor) -> Drafted:
        """Reads the layout: a row's last token, then its drafts, and one row of logits for each.

        Args:
            tokens: int [N + B].
            cu_num_logits: int [B + 1], where each row begins in `tokens`.
            idx_mapping: int [B], the rows' slots.
        """
        total = tokens.shape[0] - idx_mapping.shape[0]
        row, position = rows_of(cu_num_logits.diff().long() - 1, total)
        at = torch.arange(total, device=row.device) + row  # after each row, its last logits
        return cls(
            row=row,
            position=position,
            slot=idx_mapping.long()[row],
            at=at,
            token=tokens.long()[at + 1],
        )


def attach(worker: Any, serving: Serving) -> None:
    """Changes the sampler of a worker whose V2 model runner was just made.

    Only after vLLM's warm-up, which sends requests of its own.

    Raises:
        ConfigError: This vLLM lacks a place that the plugin builds on.
    """
    from vllm.v1.worker.gpu.sample.sampler import Sampler  # pyright: ignore
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler  # pyright: ignore
    from vllm.v1.worker.gpu.spec_decode.speculator import (  # pyright: ignore
        DraftModelSpeculator,
    )

    check_seams(worker, Sampler, rejection_sampler, DraftModelSpeculator)
    if not getattr(rejection_sampler.rejection_sample, "asks_easd", False):
        rejection_sampler.rejection_sample = gated(rejection_sampler.rejection_sample)
    runner = worker.model_runner
    runner.easd = Slots(serving, runner.max_num_reqs, runner.device)
    stock = worker.compile_or_warm_up_model

    def compile_or_warm_up_model() -> Any:
        result = stock()
        if runner.rejection_sampler is not None:  # in the last stage of a pipeline
            follow(runner.easd, runner.rejection_sampler)
            logger.info("easd: in the sampler of this worker")
        return result

    worker.compile_or_warm_up_model = compile_or_warm_up_model


def check_seams(worker: Any, sampler: Any, rejection_sampler: Any, speculator: Any) -> None:
    """Compares what the plugin builds on with what it knows.

    Raises:
        ConfigError: A function is missing, or takes other arguments.
    """
    verifier = getattr(rejection_sampler, "RejectionSampler", None)
    known = {
        "rejection_sampler.rejection_sample": (
            getattr(rejection_sampler, "rejection_sample", None),
            "target_logits draft_logits draft_sampled cu_num_logits pos idx_mapping "
            "expanded_idx_mapping expanded_local_pos temperature",
        ),
        "RejectionSampler._verify": (
            getattr(verifier, "_verify", None),
            "self logits draft_logits draft_sampled pos cu_num_logits idx_mapping idx_mapping_np",
        ),
        "Sampler.add_request": (
            getattr(sampler, "add_request", None),
            "self req_idx sampling_params",
        ),
        # Where it is settled that drafts are drawn by the temperature alone.
        "DraftModelSpeculator.sample_draft": (
            getattr(speculator, "sample_draft", None),
            "self hidden_states sample_src_positions idx_mapping temperature seeds draft_step "
            "draft_logits",
        ),
        "Worker.compile_or_warm_up_model": (
            getattr(worker, "compile_or_warm_up_model", None),
            "",
        ),
    }
    check_signatures(known)


def follow(slots: Slots, verifier: Any) -> None:
    """Has one engine's `RejectionSampler` and its `Sampler` tell `slots` of requests and steps."""
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
        token = _batch.set(slots.batch(idx_mapping_np.tolist()))
        try:
            return verify(
                logits,
                draft_logits,
                draft_sampled,
                pos,
                cu_num_logits,
                idx_mapping,
                idx_mapping_np,
                *args,
                **kwargs,
            )
        finally:
            _batch.reset(token)

    verifier.sampler.add_request = add_request
    verifier._verify = _verify


def gated(stock: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`rejection_sample` that penalises first, in steps of engines that have a rule."""

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
        def verify() -> tuple[Tensor, Tensor]:
            return stock(
                target_logits,
                draft_logits,
                draft_sampled,
                cu_num_logits,
                pos,
                idx_mapping,
                expanded_idx_mapping,
                expanded_local_pos,
                temperature,
                *args,
                **kwargs,
            )

        batch = _batch.get()
        if batch is None or draft_sampled.shape == idx_mapping.shape:  # nothing was drafted
            return verify()
        drafted = Drafted.of(draft_sampled, cu_num_logits, idx_mapping)
        gates = ask_all(batch, drafted, draft_logits, target_logits, temperature)
        with penalised(gates.open, drafted, draft_logits, target_logits):
            sampled, num_sampled = verify()
        batch.tally.add(gates, drafted.row, drafted.position, num_sampled)
        return sampled, num_sampled

    rejection_sample.asks_easd = True  # type: ignore[attr-defined]
    return rejection_sample


def ask_all(
    batch: Batch, drafted: Drafted, draft_logits: Tensor, target_logits: Tensor, temperature: Tensor
) -> Gates:
    """Asks the gate of each draft token, some tokens at a time.

    Args:
        draft_logits: [slots, K, V'], before the temperature.
        target_logits: [N + B, V], after all processors and the temperature.
        temperature: float [slots]; greedy requests, with 0, are asked about as at 1.
    """
    vocab = min(draft_logits.shape[-1], target_logits.shape[-1])  # as in vLLM's kernels
    rule_of = batch.rule_of[drafted.row]
    temperature = temperature[drafted.slot]
    temperature = torch.where(temperature == 0, 1.0, temperature)[:, None]
    parts = []
    for start in range(0, rule_of.shape[0], max(1, LOGITS_AT_ONCE // vocab)):
        part = slice(start, start + max(1, LOGITS_AT_ONCE // vocab))
        draft = draft_logits[drafted.slot[part], drafted.position[part], :vocab].float()
        parts.append(
            ask(
                batch.rules,
                rule_of[part],
                drafted.token[part],
                draft.div_(temperature[part]).softmax(-1),
                target_logits[drafted.at[part], :vocab],
            )
        )
    return Gates(
        asked=torch.cat([gates.asked for gates in parts]),
        met={name: torch.cat([gates.met[name] for gates in parts]) for name in parts[0].met},
        open=torch.cat([gates.open for gates in parts]),
    )


@contextmanager
def penalised(
    gate: Tensor, drafted: Drafted, draft_logits: Tensor, target_logits: Tensor
) -> Iterator[None]:
    """Changes what the stock kernels read where `gate` bool [N] is open, so that they penalise.

    A token that the target excludes is refused, and a draft that is certain of it takes nothing
    else from what is redrawn from: the target without the token. The target's logits are put back
    afterwards, as vLLM takes log-probabilities from them; the draft's are overwritten by the next
    draft.
    """
    token = drafted.token.clamp_min(0)
    place = (drafted.slot, drafted.position, token)
    draft_logits[place] = draft_logits[place].masked_fill(gate, CERTAIN)
    kept = target_logits[drafted.at, token]
    target_logits[drafted.at, token] = kept.masked_fill(gate, float("-inf"))
    yield
    target_logits[drafted.at, token] = kept
