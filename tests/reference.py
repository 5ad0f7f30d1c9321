"""The slow, obvious sampler that the engine is tested against.

No cache, no batch, no blocks of positions: both models are asked for one distribution at a time.
The laws of short sequences are exact: every sequence is enumerated, so keep the vocabulary and
the length small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.couplings import Coupling, procedure
from easd.core.rules import Rule
from easd.core.step import Step

Text = tuple[int, ...]
Predict = Callable[[Text], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One rule over two models, each a function from a prefix to float64 probabilities [V].

    Attributes:
        draft, target: the distributions that tokens are drawn from.
        rule: says what law tokens are drawn from.
        coupling: how draft tokens are judged in blocks; the rule's default unless given.
        raw_draft, raw_target: distributions at temperature 1 without truncation, for rules that
            need them; the sampling ones unless given.
        greedy: whether `draft` and `target` are one-hot rows of greedy decoding.
        ends: tokens that end a text.
    """

    draft: Predict
    target: Predict
    rule: Rule
    coupling: Coupling | None = None
    raw_draft: Predict | None = None
    raw_target: Predict | None = None
    greedy: bool = False
    ends: frozenset[int] = frozenset()

    def token_law(self, prefix: Text) -> Tensor:
        """The rule's closed-form law of the token after `prefix`, [V]."""
        return self.rule.law(self._step(prefix, [0]))[0, 0]

    def outcomes(self, prefix: Text, *, bonus: bool) -> tuple[Tensor, Tensor]:
        """P(y is an accepted draft token) and P(y follows a refusal), [V] each; they sum to 1.

        At the bonus position nothing is drafted, and y always follows.
        """
        chosen = procedure(self.rule, self.coupling or self.rule.default_coupling)
        if bonus:
            step = self._step(prefix, [])
            at = torch.tensor([0])
            judged = chosen.judge(step)
            follows = chosen.replacement(step, judged, at, torch.tensor([False]))[0]
            return torch.zeros_like(follows), follows
        proposed = self.draft(prefix).double()
        vocab_size = len(proposed)
        step = self._step(prefix, list(range(vocab_size)))  # a row for every possible draft token
        at = torch.zeros(vocab_size, dtype=torch.long)
        judged = chosen.judge(step)
        accept, penalty = judged.accept_prob[:, 0], judged.penalty_prob[:, 0]
        after = {
            penalised: chosen.replacement(step, judged, at, torch.full_like(at, penalised).bool())
            for penalised in (False, True)
        }
        follows = (proposed * penalty) @ after[True]
        follows += (proposed * (1 - accept - penalty).clamp_min(0)) @ after[False]
        return proposed * accept, follows

    def sequence_law(self, prompt: Text, length: int) -> Mapping[Text, float]:
        """Probability of every text of at most `length` tokens: the product of its tokens' laws.

        It is what a decoder emits whose law does not depend on blocks: any lossless rule, and
        gated rules with `draft_at_bonus`.
        """
        texts: dict[Text, float] = {(): 1.0}
        for _ in range(length):
            longer: dict[Text, float] = {}
            for text, mass in texts.items():
                if self._ended(text):
                    longer[text] = mass
                    continue
                for token, prob in enumerate(self.token_law(prompt + text).tolist()):
                    longer[*text, token] = mass * prob
            texts = longer
        return texts

    def block_sequence_law(self, prompt: Text, length: int, gamma: int) -> Mapping[Text, float]:
        """Probability of every text of at most `length` tokens, drafted in blocks of `gamma`.

        Follows the block process through every outcome. A block drafts `gamma` tokens, or one
        less than may still be emitted.
        """
        done: defaultdict[Text, float] = defaultdict(float)
        # (text, place in the block, draft tokens of the block) -> probability
        states = {((), 0, min(gamma, length - 1)): 1.0}
        while states:
            following: defaultdict[tuple[Text, int, int], float] = defaultdict(float)
            for (text, place, drafted), mass in states.items():
                if len(text) == length or self._ended(text):
                    done[text] += mass
                    continue
                accepted, follows = self.outcomes(prompt + text, bonus=place == drafted)
                pairs = zip(accepted.tolist(), follows.tolist(), strict=True)
                for token, (stays, starts) in enumerate(pairs):
                    longer = (*text, token)
                    anew = min(gamma, length - len(longer) - 1)
                    following[longer, place + 1, drafted] += mass * stays
                    following[longer, 0, anew] += mass * starts
            states = {state: mass for state, mass in following.items() if mass > 0}
        return done

    def sample(self, prompt: Text, length: int, generator: torch.Generator) -> Text:
        """One text drawn token by token from the closed-form law."""
        text: Text = ()
        while len(text) < length and not self._ended(text):
            text = (*text, _draw(self.token_law(prompt + text), generator))
        return text

    def sample_blocks(
        self, prompt: Text, length: int, gamma: int, generator: torch.Generator
    ) -> Text:
        """One text drawn by the block process."""
        text: Text = ()
        place, drafted = 0, min(gamma, length - 1)
        while len(text) < length and not self._ended(text):
            both = torch.cat(self.outcomes(prompt + text, bonus=place == drafted))
            refused, token = divmod(_draw(both, generator), len(both) // 2)
            text = (*text, token)
            place += 1
            if refused:
                place, drafted = 0, min(gamma, length - len(text) - 1)
        return text

    def _ended(self, text: Text) -> bool:
        return text[-1:] != () and text[-1] in self.ends

    def _step(self, prefix: Text, drafted: list[int]) -> Step:
        """The step at one position: a row per entry of `drafted`, or one bonus row without."""
        rows, length = max(len(drafted), 1), min(len(drafted), 1)
        bonus = not drafted

        def row(predict: Predict, *, evaluated: bool = True) -> Tensor:
            # Behind a drafted position stands a bonus position that nobody asks about.
            return (predict(prefix).double() * evaluated).expand(rows, length + 1, -1)

        return Step(
            draft_tokens=torch.tensor([drafted], dtype=torch.long).view(rows, length),
            num_draft_tokens=torch.full((rows,), length),
            draft_probs=row(self.draft, evaluated=not bonus or self.rule.draft_at_bonus),
            target_probs=row(self.target),
            raw_draft_probs=row(self.raw_draft or self.draft),
            raw_target_probs=row(self.raw_target or self.target),
            greedy=torch.ones(rows, dtype=torch.bool) if self.greedy else None,
        )


def _draw(probs: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(probs, 1, generator=generator))
