"""Rules in workers with vLLM's V1 model runner; importing this module changes the worker's set-up.

vLLM imports it in each worker of an engine with `Extension`. Three functions are changed, the first
two on objects of one engine, the last so that it acts in calls of that engine only:

* the draft keeps its probabilities for batches of greedy requests too, since rules read them, and
  draws its tokens at a temperature of their own where one is set;
* `GPUModelRunner._sample` looks up the rule of each row;
* `rejection_sample` applies the rules before the stock kernel runs.
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

from easd.engine.sampling import raised
from easd.errors import ConfigError
from easd.integrations.vllm import KEY, cpu_expand, is_configured, worker_v2
from easd.integrations.vllm.batch import Batch, on_device
from easd.integrations.vllm.compatibility import FIRST_RUNNER, check_functions
from easd.integrations.vllm.gate import Gates, Tally, Values, ask, light, penalise_, rows_of
from easd.integrations.vllm.laws import last_drafts, log_laws
from easd.integrations.vllm.serving import Serving

logger = logging.getLogger("vllm.easd")

_batch: ContextVar[Batch | None] = ContextVar("easd_batch", default=None)


class Extension:
    """Worker methods for `collective_rpc`."""

    def easd_statistics(self) -> dict[str, int]:
        """Returns counts since the start; see `easd.integrations.vllm.gate.Tally`."""
        return self.model_runner.easd.tally.read()  # type: ignore[attr-defined]


class Assignment:
    """Looks up the rows' rules, and caches their tensors while the batch has the same requests."""

    def __init__(self, serving: Serving, runner: Any) -> None:
        self.tally = Tally(runner.device)
        self._serving = serving
        self._runner = runner
        self._last: tuple[list[Any], Batch | None] = ([], None)

    def batch(self) -> Batch | None:
        """Returns the rules of the runner's current batch; None where no row has one."""
        requests = self._runner.requests
        params = [requests[name].sampling_params for name in self._runner.input_batch.req_ids]
        known, _ = self._last
        if len(params) != len(known) or not all(map(is_, params, known)):
            rules = [self._serving.rule_for(each.extra_args) for each in params]
            batch = Batch.of(rules, self._serving, self.tally, self._runner.device)
            self._last = (params, batch)
        return self._last[1]


def attach(runner: Any, serving: Serving) -> None:
    """Changes a new V1 model runner.

    Raises:
        ConfigError: This vLLM lacks a function that the plugin relies on.
    """
    check_drafter(runner)
    check_functions(FIRST_RUNNER)
    from vllm.v1.sample import rejection_sampler  # pyright: ignore

    if cpu_expand.mend(rejection_sampler):
        logger.info("easd: expand_batch_to_tokens replaced (vllm#55005)")
    if not getattr(rejection_sampler.rejection_sample, "asks_easd", False):
        rejection_sampler.rejection_sample = gated(rejection_sampler.rejection_sample)
    draw_drafts(runner.drafter, serving.draft_temperature)
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
    """Refuses a drafter that keeps no draft probabilities.

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
    """Returns a `rejection_sample` that applies the rules first, in engines that have one."""

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
        layout = num_draft_tokens, max_spec_len, cu_num_draft_tokens
        rest = target_logits, bonus_token_ids, sampling_metadata, *args

        def verify(tokens: Tensor, proposals: Tensor | None) -> Tensor:
            return stock(tokens, *layout, proposals, *rest, **kwargs)

        batch = _batch.get()
        if batch is None or not num_draft_tokens or not max_spec_len:
            return verify(draft_token_ids, draft_probs)
        if draft_probs is None:
            if batch.has_rules:
                batch.tally.add_unasked(draft_token_ids.shape[0])
            return verify(draft_token_ids, None)
        counts, row, position = _laid_out(tuple(num_draft_tokens), draft_token_ids.device)
        greedy = _greedy(sampling_metadata, row)
        proposals = draft_probs
        if batch.draft_temperature is not None and not sampling_metadata.all_greedy:
            temperature = sampling_metadata.temperature[torch.as_tensor(row)]
            proposals = proposed(draft_probs, temperature, batch.draft_temperature)
        if not batch.has_rules:
            return verify(draft_token_ids, proposals)
        rule_of = light(batch.rule_of)[row]
        gates = follow_(batch, rule_of, draft_token_ids, draft_probs, target_logits, greedy)
        redrawn = None
        if batch.redraws is not None:
            redrawn = gates.asked & last_drafts(counts, light(batch.redraws), row, position)
            draft_token_ids = redraw_(torch.as_tensor(redrawn), draft_token_ids, proposals, greedy)
        output = verify(draft_token_ids, proposals)
        batch.tally.add(gates, row, position, (light(output) >= 0).sum(-1), redrawn)
        return output

    rejection_sample.asks_easd = True  # type: ignore[attr-defined]
    return rejection_sample


def follow_(
    batch: Batch,
    rule_of: Values,
    draft_tokens: Tensor,
    draft_probs: Tensor,
    target_logits: Tensor,
    greedy: Tensor | None,
) -> Gates:
    """Changes the logits and draft probabilities so that the stock kernel follows the rules.

    Args:
        batch: the rules.
        rule_of: int64 [N], the number of each draft token's rule.
        draft_tokens: int [N]; -1 is a placeholder, which no rule judges.
        draft_probs, target_logits: [N, V].
        greedy: bool [N]; None where no row is.
    """
    found: list[Gates] = []
    if batch.laws:
        drawn = torch.as_tensor(rule_of).masked_fill(draft_tokens < 0, -1)
        logits, gates = log_laws(
            batch.laws, len(batch.published), drawn, draft_probs, target_logits, greedy
        )
        if logits is not target_logits:
            target_logits.copy_(logits)
        found.append(gates)
    if batch.published:
        gates = ask(batch.published, rule_of, draft_tokens, draft_probs, target_logits)
        penalise_(gates.open, draft_tokens, draft_probs, target_logits)
        found.append(gates)
    return reduce(or_, found)


def redraw_(
    redrawn: Tensor, draft_tokens: Tensor, proposals: Tensor, greedy: Tensor | None
) -> Tensor:
    """Makes the stock kernel replace draft tokens by tokens of the law, whatever they are.

    The kernel refuses a draft row of zeros, which subtracts nothing from the law. In greedy rows it
    compares tokens with the law's best one, from which -1 differs.

    Returns:
        The draft tokens to verify.
    """
    proposals.mul_(~redrawn[:, None])
    return draft_tokens if greedy is None else draft_tokens.masked_fill(redrawn & greedy, -1)


def _greedy(sampling_metadata: Any, row: Values) -> Tensor | None:
    """Returns a mask [N] of draft tokens of greedy requests; None where there is none."""
    if sampling_metadata.all_random:
        return None
    row = torch.as_tensor(row)
    if sampling_metadata.all_greedy:
        return torch.ones_like(row, dtype=torch.bool)
    return (sampling_metadata.temperature == 0)[row]


@lru_cache(maxsize=64)
def _laid_out(
    num_draft_tokens: tuple[int, ...], device: torch.device
) -> tuple[Values, Values, Values]:
    """Returns the counts [B], and `rows_of` them, as most steps have the same counts as others."""
    counts = on_device(num_draft_tokens, device)
    row, position = rows_of(counts, sum(num_draft_tokens))
    return light(counts), light(row), light(position)


def draw_drafts(drafter: Any, draft_temperature: float | None) -> None:
    """Makes the drafter keep what rules read, and draw its tokens at `draft_temperature`.

    It returns probabilities at temperature 1 where all requests are greedy. vLLM drops them there,
    since its verification of greedy rows needs the tokens only. For other rows it keeps those at
    the request's temperature, of which `proposed` makes what the tokens are drawn from.
    """
    stock = drafter._sample_draft_tokens

    def _sample_draft_tokens(hidden_states: Tensor, sampling_metadata: Any) -> Any:
        if sampling_metadata.all_greedy:
            logits = drafter.model.compute_logits(hidden_states)
            return logits.argmax(-1), logits.softmax(-1, dtype=torch.float32)
        tokens, probs = stock(hidden_states, sampling_metadata)
        if draft_temperature is None:
            return tokens, probs
        # Drafters that draw a whole block at once have several rows for each request.
        temperature = sampling_metadata.temperature
        temperature = temperature.repeat_interleave(len(probs) // len(temperature))
        proposals = proposed(probs, temperature, draft_temperature)
        drawn = (proposals / torch.empty_like(proposals).exponential_()).argmax(-1)
        return torch.where(temperature == 0, tokens, drawn.to(tokens.dtype)), probs

    drafter._sample_draft_tokens = _sample_draft_tokens


def proposed(draft_probs: Tensor, temperature: Tensor, draft_temperature: float) -> Tensor:
    """Returns what draft tokens are drawn from at `draft_temperature`; [N, V].

    Args:
        draft_probs: [N, V], the draft's distributions at the requests' temperatures.
        temperature: float [N]; greedy requests have 0, and keep their distribution.
    """
    power = torch.where(temperature == 0, 1.0, temperature / draft_temperature)
    return raised(draft_probs, power[:, None])


def _attach_in_workers() -> None:
    stock = WorkerWrapperBase.init_device

    def init_device(self: Any) -> Any:
        result = stock(self)
        if is_configured(self.vllm_config):
            serving = Serving.parse(self.vllm_config.additional_config[KEY])
            if self.vllm_config.use_v2_model_runner:
                worker_v2.attach(self.worker, serving)
            else:
                attach(self.worker.model_runner, serving)
        return result

    WorkerWrapperBase.init_device = init_device  # type: ignore[method-assign]


_attach_in_workers()
