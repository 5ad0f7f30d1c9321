"""Rules in the workers: vLLM imports this module in each of them when the engine asks for it.

Three places are changed, all of one engine's own objects but the last, which acts in calls of that
engine only:

* the draft keeps its probabilities for batches of greedy requests too, which rules look at;
* `GPUModelRunner._sample` says which rule each row follows;
* `rejection_sample` asks the rules before the stock kernel runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache, reduce, wraps
from operator import is_, or_
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.worker_base import WorkerWrapperBase  # pyright: ignore

from easd.errors import ConfigError
from easd.integrations.vllm import KEY, cpu_expand, worker_v2
from easd.integrations.vllm.batch import Batch, on_device
from easd.integrations.vllm.gate import Gates, Tally, ask, penalise_, rows_of
from easd.integrations.vllm.laws import last_drafts, log_laws
from easd.integrations.vllm.seams import FIRST_RUNNER, check_seams
from easd.integrations.vllm.serving import Serving

logger = logging.getLogger("vllm.easd")

_batch: ContextVar[Batch | None] = ContextVar("easd_batch", default=None)


class Extension:
    """What `collective_rpc` reaches in a worker."""

    def easd_statistics(self) -> dict[str, int]:
        """Counts since the start; see `easd.integrations.vllm.gate.Tally`."""
        return self.model_runner.easd.tally.read()  # type: ignore[attr-defined]


class Assignment:
    """Finds the rows' rules, and keeps what goes to the device while the batch stays alike."""

    def __init__(self, serving: Serving, runner: Any) -> None:
        self.tally = Tally(runner.device)
        self._serving = serving
        self._runner = runner
        self._last: tuple[list[Any], Batch | None] = ([], None)

    def batch(self) -> Batch | None:
        """The rules of the runner's batch as it stands; None where no row has one."""
        requests = self._runner.requests
        params = [requests[name].sampling_params for name in self._runner.input_batch.req_ids]
        known, _ = self._last
        if len(params) != len(known) or not all(map(is_, params, known)):
            rules = [self._serving.rule_for(each.extra_args) for each in params]
            batch = Batch.of(rules, self._serving, self.tally, self._runner.device)
            self._last = (params, batch)
        return self._last[1]


def attach(runner: Any, serving: Serving) -> None:
    """Changes a V1 model runner, freshly made.

    Raises:
        ConfigError: This vLLM lacks a place that the plugin builds on.
    """
    check_drafter(runner)
    check_seams(FIRST_RUNNER)
    from vllm.v1.sample import rejection_sampler  # pyright: ignore

    if cpu_expand.mend(rejection_sampler):
        logger.info("easd: expand_batch_to_tokens replaced (vllm#55005)")
    if not getattr(rejection_sampler.rejection_sample, "asks_easd", False):
        rejection_sampler.rejection_sample = gated(rejection_sampler.rejection_sample)
    keep_greedy_probabilities(runner.drafter)
    runner.easd = Assignment(serving, runner)
    stock = runner._sample

    def _sample(logits: Tensor | None, spec_decode_metadata: Any) -> Any:
        token = _batch.set(None if spec_decode_metadata is None else runner.easd.batch())
        try:
            return stock(logits, spec_decode_metadata)
        finally:
            _batch.reset(token)

    runner._sample = _sample
    logger.info("easd: in the sampler of this worker")


def check_drafter(runner: Any) -> None:
    """Refuses a drafter that does not say what it draws from.

    Raises:
        ConfigError: It keeps no draft probabilities.
    """
    drafter = getattr(runner, "drafter", None)
    if not getattr(drafter, "_enable_probabilistic_draft_probs", False):
        raise ConfigError(
            f"{type(drafter).__name__} keeps no draft probabilities, which rules look at; draft "
            "with another method"
        )


def gated(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`rejection_sample` that asks the rules first, in steps of engines that have one."""

    @wraps(stock)
    def rejection_sample(
        draft_token_ids: Tensor,
        num_draft_tokens: list[int],
        max_spec_len: int,
        cu_num_draft_tokens: Tensor,
        draft_probs: Tensor | None,
        target_logits: Tensor,
        bonus_token_ids: Tensor,
        sampling_metadata: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        def verify(tokens: Tensor) -> Tensor:
            return stock(
                tokens,
                num_draft_tokens,
                max_spec_len,
                cu_num_draft_tokens,
                draft_probs,
                target_logits,
                bonus_token_ids,
                sampling_metadata,
                *args,
                **kwargs,
            )

        batch = _batch.get()
        if batch is None or not num_draft_tokens or not max_spec_len:
            return verify(draft_token_ids)
        if draft_probs is None:
            batch.tally.add_unasked(draft_token_ids.shape[0])
            return verify(draft_token_ids)
        row, position = _laid_out(tuple(num_draft_tokens), draft_token_ids.device)
        greedy = _greedy(sampling_metadata, row)
        gates = follow_(
            batch, batch.rule_of[row], draft_token_ids, draft_probs, target_logits, greedy
        )
        redrawn = None
        if batch.redraws is not None:
            counts = on_device(num_draft_tokens, row.device)
            redrawn = gates.asked & last_drafts(counts, batch.redraws, row, position)
            draft_token_ids = redraw_(redrawn, draft_token_ids, draft_probs, greedy)
        output = verify(draft_token_ids)
        batch.tally.add(gates, row, position, (output >= 0).sum(-1), redrawn)
        return output

    rejection_sample.asks_easd = True  # type: ignore[attr-defined]
    return rejection_sample


def follow_(
    batch: Batch,
    rule_of: Tensor,
    draft_tokens: Tensor,
    draft_probs: Tensor,
    target_logits: Tensor,
    greedy: Tensor | None,
) -> Gates:
    """Changes what the stock kernel reads so that it does as the rows' rules say.

    Args:
        batch: the rules.
        rule_of: int64 [N], the number of each draft token's rule.
        draft_tokens: int [N]; -1 is a placeholder, which no rule judges.
        draft_probs, target_logits: [N, V].
        greedy: bool [N]; None where no row is.
    """
    found: list[Gates] = []
    if batch.laws:
        drawn = rule_of.masked_fill(draft_tokens < 0, -1)
        logits, gates = log_laws(
            batch.laws, len(batch.published), drawn, draft_probs, target_logits, greedy
        )
        target_logits.copy_(logits)
        found.append(gates)
    if batch.published:
        gates = ask(batch.published, rule_of, draft_tokens, draft_probs, target_logits)
        penalise_(gates.open, draft_tokens, draft_probs, target_logits)
        found.append(gates)
    return reduce(or_, found)


def redraw_(
    redrawn: Tensor, draft_tokens: Tensor, draft_probs: Tensor, greedy: Tensor | None
) -> Tensor:
    """Has the stock kernel replace draft tokens by one of the law, whatever they are.

    A draft row of zeros is refused, and takes nothing from the law. Greedy rows are compared with
    the law's best token; one that is no token differs from it.

    Returns:
        The draft tokens to verify.
    """
    draft_probs.mul_(~redrawn[:, None])
    return draft_tokens if greedy is None else draft_tokens.masked_fill(redrawn & greedy, -1)


def _greedy(sampling_metadata: Any, row: Tensor) -> Tensor | None:
    """Which draft tokens [N] are of greedy requests; None where none is."""
    if sampling_metadata.all_random:
        return None
    if sampling_metadata.all_greedy:
        return torch.ones_like(row, dtype=torch.bool)
    return (sampling_metadata.temperature == 0)[row]


@lru_cache(maxsize=64)
def _laid_out(num_draft_tokens: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """`rows_of` steps, most of which look like the last one."""
    return rows_of(on_device(num_draft_tokens, device), sum(num_draft_tokens))


def keep_greedy_probabilities(drafter: Any) -> None:
    """Has the draft say its probabilities at temperature 1 where all requests are greedy.

    vLLM drops them there: its own test of greedy rows needs the tokens only.
    """
    stock = drafter._sample_draft_tokens

    def _sample_draft_tokens(hidden_states: Tensor, sampling_metadata: Any) -> Any:
        if not sampling_metadata.all_greedy:
            return stock(hidden_states, sampling_metadata)
        logits = drafter.model.compute_logits(hidden_states)
        return logits.argmax(-1), logits.softmax(-1, dtype=torch.float32)

    drafter._sample_draft_tokens = _sample_draft_tokens


def _attach_in_workers() -> None:
    stock = WorkerWrapperBase.init_device

    def init_device(self: Any) -> Any:
        result = stock(self)
        values = self.vllm_config.additional_config
        if isinstance(values, dict) and KEY in values:
            serving = Serving.parse(values[KEY])
            if self.vllm_config.use_v2_model_runner:
                worker_v2.attach(self.worker, serving)
            else:
                attach(self.worker.model_runner, serving)
        return result

    WorkerWrapperBase.init_device = init_device  # type: ignore[method-assign]


_attach_in_workers()
