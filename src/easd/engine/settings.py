"""The settings of decoding: one frozen dataclass for Python, the command line and files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Literal

from transformers.generation import logits_process as hf

from easd.core.couplings import Coupling
from easd.core.gate import Share
from easd.core.rules import EASD, Rule, as_rule
from easd.core.rules.base import PositiveShare, Probability
from easd.core.rules.gated import GatedRule
from easd.engine.auto_gamma import MOST_AUTO_GAMMA
from easd.engine.drafter_kinds import DrafterKind
from easd.engine.processing import Processing, Processor
from easd.errors import ConfigError
from easd.fields import Within, check_fields

# All distributions of a block are held in memory at once.
MOST_GAMMA = 256
MOST_TOKENS = 2**31 - 1

Gamma = Annotated[int, Within(1, MOST_GAMMA, "out of range")] | Literal["auto"]
Tokens = Annotated[int, Within(0, MOST_TOKENS, "out of range")]
NewTokens = Annotated[int, Within(1, MOST_TOKENS, "out of range")]
Temperature = Annotated[float, Within(0, 100, "no sensible temperature")]
Penalty = Annotated[float, Within(0.01, 100, "no sensible penalty")]
Texts = Annotated[int, Within(1, 2**16, "out of range")]
Batch = Annotated[int, Within(1, 2**14, "out of range")]

# Logits divided by less than this are infinite in half precision, or too far apart to sample.
_COLDEST = 1e-3

Scope = Literal["everywhere", "reasoning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything besides the models and the prompt that determines a text.

    Attributes:
        rule: how draft tokens are judged: a rule, or its name; see `easd.RULES`.
        gamma: draft tokens asked for in one block; `auto` chooses 0 to 8 while decoding, from
            measured times and acceptance. It needs a lossless rule, or one that evaluates the draft
            at the bonus position too. Unless coupling is shared, texts differ from run to run.
        least_block_prob: a block ends before `gamma` tokens once the draft's probability of all
            its tokens falls below this; 0 always drafts `gamma`. Needs a rule whose gate, if it has
            one, is evaluated at the bonus position too.
        drafter: draft with the draft model, or look up the next tokens in the text so far.
        max_new_tokens: maximum number of new tokens per text; unless given, 256 or what the
            context window leaves.
        min_new_tokens: minimum number of new tokens per text.
        temperature: 0 decodes greedily.
        draft_temperature: temperature that draft tokens are drawn at, when sampling; the law of a
            text does not depend on it, how many tokens are accepted does (`easd calibrate` measures
            it). `temperature` unless given; 0 drafts the draft's most probable token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set with this probability; 1 keeps all.
        min_p: drop tokens below this share of the most probable one; 0 keeps all.
        repetition_penalty: divides the logits of tokens already in the text; 1 disables it.
        bad_words: texts that are never generated.
        stop: texts that end the decoding.
        seed: with a request's number, decides all its randomness.
        coupling: how a drafted block helps to draw from the rule's law: `maximal` keeps as many
            draft tokens as can be, `published` follows the rule's paper, and `shared` samples draft
            and emitted token with the same numbers, so that the text depends on the law alone.
            The rule's own default unless given.
        exact_first: number of first tokens of a text that are drawn from the target; the rule
            applies after them.
        scope: where the rule applies: everywhere, or only between the model's reasoning markers
            (`<think>` and the like). Elsewhere decoding is lossless.
        n: texts per prompt.
        batch_size: texts decoded at once.
    """

    rule: Rule = field(default_factory=EASD)
    gamma: Gamma = 4
    least_block_prob: Probability = 0.0
    drafter: DrafterKind = "model"
    max_new_tokens: NewTokens | None = None
    min_new_tokens: Tokens = 0
    temperature: Temperature = 1.0
    draft_temperature: Temperature | None = None
    top_k: Tokens = 0
    top_p: PositiveShare = 1.0
    min_p: Share = 0.0
    repetition_penalty: Penalty = 1.0
    bad_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int = 0
    coupling: Coupling | None = None
    exact_first: Tokens = 0
    scope: Scope = "everywhere"
    n: Texts = 1
    batch_size: Batch = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", as_rule(self.rule))
        check_fields(self, ConfigError)
        for name in ("temperature", "draft_temperature"):
            if 0 < (getattr(self, name) or 0) < _COLDEST:
                raise ConfigError(
                    f"{name} = {getattr(self, name)} is too cold to divide logits by; use 0, which "
                    f"takes the most probable token, or {_COLDEST} or more"
                )
        if self.rule.models == "draft" and (self.exact_first or self.scope != "everywhere"):
            raise ConfigError(
                "exact_first and scope draw tokens from the target, and the rule draft runs the "
                "draft alone; drop them"
            )
        if self.least_block_prob and not self._law_knows_no_blocks:
            raise ConfigError(
                "least_block_prob ends blocks where the draft is unsure, and the gate of this rule "
                "is not asked at a block's end; set the rule's draft_at_bonus = true"
            )
        if self.gamma == "auto" and not self._law_knows_no_gamma:
            gated = isinstance(self.rule, GatedRule)
            way_out = ", or set the rule's draft_at_bonus = true" if gated else ""
            raise ConfigError(
                f"gamma = 'auto' ends blocks where measured times say, and {self.rule.name} has "
                f"another law at a block's end; give a number{way_out}"
            )
        if "" in self.bad_words:
            raise ConfigError("a bad word is empty and bans nothing; remove it")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens = {self.min_new_tokens} is more than max_new_tokens = "
                f"{self.max_new_tokens}; lower one or raise the other"
            )
        if self.coupling not in (None, "published") and not self.rule.has_law:
            raise ConfigError(
                f"coupling = {self.coupling!r} draws from the rule's law, and {self.rule.name} has "
                "none per position with these fields; use published"
            )
        if self.draft_temperature is not None:
            self._check_draft_temperature()
        if self.drafter == "prompt-lookup" and self.rule.needs_opinion:
            raise ConfigError(
                f"rule {self.rule.name!r} asks a draft model's opinion of every token, and prompt "
                "lookup has none; use drafter = model"
            )
        gate = self.rule.gate
        if self.drafter == "prompt-lookup" and gate and "draft_entropy" in gate.conditions:
            warnings.warn(
                "prompt lookup is certain of its proposals (draft entropy 0), so this rule's gate "
                "never opens and it decodes like plain speculation",
                stacklevel=3,
            )

    def _check_draft_temperature(self) -> None:
        coupling = self.coupling or self.rule.default_coupling
        if coupling == "published" and self.rule.published() is not None:
            raise ConfigError(
                f"draft_temperature = {self.draft_temperature} would change what {self.rule.name} "
                "emits: its published procedure draws from the draft's own distribution; use the "
                "coupling maximal, block or shared, which keep its law at any draft temperature"
            )
        if self.drafter == "prompt-lookup":
            raise ConfigError(
                f"draft_temperature = {self.draft_temperature} has no meaning for prompt lookup, "
                "which draws nothing; drop one of them"
            )

    @property
    def proposal_power(self) -> float:
        """The power of the draft's distribution that draft tokens are drawn from."""
        if self.draft_temperature is None:
            return 1.0
        return self.temperature / self.draft_temperature if self.draft_temperature else inf

    @property
    def most_gamma(self) -> int:
        """Maximum number of draft tokens in a block."""
        return MOST_AUTO_GAMMA if self.gamma == "auto" else self.gamma

    @property
    def fixed_gamma(self) -> int:
        """`gamma`, for forecasts.

        Raises:
            ConfigError: It is no number.
        """
        if self.gamma == "auto":
            raise ConfigError("gamma = 'auto' is chosen while decoding; a forecast needs a number")
        return self.gamma

    @property
    def _law_knows_no_gamma(self) -> bool:
        rule = self.rule
        return rule.models != "both" or rule.lossless or rule.draft_at_bonus

    @property
    def _law_knows_no_blocks(self) -> bool:
        return self.rule.draft_at_bonus or not isinstance(self.rule, GatedRule)

    def processing(
        self, prompt_length: int, eos: list[int], bad_words_ids: list[list[int]]
    ) -> Processing:
        """The logits processors of a prompt, in the order transformers applies them."""
        processors: list[Processor] = []
        if self.repetition_penalty != 1:
            processors.append(hf.RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if bad_words_ids:
            processors.append(hf.NoBadWordsLogitsProcessor(bad_words_ids, eos or None))
        if self.min_new_tokens and eos:
            processors.append(
                hf.MinNewTokensLengthLogitsProcessor(prompt_length, self.min_new_tokens, eos)
            )
        if self.temperature == 0:
            return Processing(tuple(processors), greedy=True)
        if self.temperature != 1:
            processors.append(hf.TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            processors.append(hf.TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            processors.append(hf.TopPLogitsWarper(float(self.top_p)))
        if self.min_p > 0:
            processors.append(hf.MinPLogitsWarper(float(self.min_p)))
        return Processing(tuple(processors), proposal_power=self.proposal_power)
