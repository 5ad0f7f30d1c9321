"""Reward-guided speculative decoding over the engine (RSD, arXiv:2501.19324, Alg. 1).

The draft writes one reasoning step and a reward model scores it. If the score is too low, the
target rewrites the step. The target's steps are not scored.

A text follows the paper's mixture only if a rewritten step is independent of the refused one; with
the same noise the target would often repeat it. So drafted steps use the noise of the request's
number and rewritten ones that of `rewriting_number`.

Every step processes its text from the beginning, which `StepCounts` leaves out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from easd.core.rules import DraftOnly, Rule, TargetOnly
from easd.engine.batch import Clock
from easd.engine.generate import decode, make_requests
from easd.engine.pair import Pair
from easd.engine.request import FinishReason, Request, Row
from easd.engine.settings import Settings
from easd.engine.stopping import StopStrings
from easd.errors import ConfigError, NumericsError
from easd.evaluate.rewards import ScoredStep, Scorer
from easd.evaluate.written_steps import StepCounts, WrittenStep


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardGuided:
    """Threshold and length of steps.

    Attributes:
        delta: smallest reward of a drafted step that is kept; above 1 the target writes everything.
        step: text that ends a step, or tokens in a step. A step also ends where its text does.
    """

    delta: float = 0.7
    step: str | int = "\n\n"

    def __post_init__(self) -> None:
        if not self.delta >= 0:
            raise ConfigError(f"delta = {self.delta} is not a threshold of rewards; use 0 or more")
        if self.step == "":
            raise ConfigError("step is an empty text, which ends no step; give a delimiter")
        if isinstance(self.step, int) and self.step < 1:
            raise ConfigError(f"step = {self.step} tokens is too short; use 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardGuidedText:
    """One decoded text, with fields as in `Generation`."""

    number: int
    prompt_ids: tuple[int, ...]
    token_ids: list[int]
    text: str | None
    finish_reason: FinishReason
    steps: tuple[WrittenStep, ...]
    error: Exception | None = None

    @property
    def counts(self) -> StepCounts:
        return StepCounts.of(self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One step of each text being decoded, with the wall time of draft, reward and target."""

    steps: tuple[WrittenStep, ...]
    seconds: dict[str, float]


def generate_reward_guided(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    scorer: Scorer,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    system: RewardGuided | None = None,
    settings: Settings | None = None,
    numbers: Sequence[int] | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> Iterator[RewardGuidedText]:
    """Decodes prompts of token ids and yields each text when it is finished.

    A text that fails, for instance by NaN logits or a NaN reward, ends after its last complete step
    with `finish_reason` "error"; the others continue.

    Args:
        target: rewrites steps.
        draft: writes steps first.
        prompts: token ids; `settings.batch_size` of them are decoded at once.
        scorer: called with all drafted steps of a round together.
        tokenizer: needed for stop strings, step delimiters and `text`.
        system: threshold and length of steps.
        settings: how to decode; rule, gamma, drafter and coupling are not used.
        numbers: of the requests; from 0 by default.
        on_round: called after every step.

    Raises:
        ConfigError: A setting does not fit, or two requests have one number.
        InputError: A prompt is empty or does not fit the context window.
    """
    system, settings = system or RewardGuided(), settings or Settings()
    requests = make_requests(Pair.of(target, draft, tokenizer), prompts, settings)
    if numbers is not None:
        requests = _numbered(requests, numbers)
    waiting = deque(_Text(request) for request in requests)
    active: list[_Text] = []
    while waiting or active:
        while waiting and len(active) < settings.batch_size:
            active.append(waiting.popleft())
        clock = Clock({})
        drafted = _write(DraftOnly(), target, draft, active, system, settings, tokenizer)
        clock.lap("draft")
        going = [text for text in active if not text.fails(drafted)]
        rewards = _rewards(scorer, going, drafted)
        clock.lap("reward")
        going = [text for text in going if text.finished is None]
        refused = [text for text in going if not rewards[text.number] >= system.delta]
        rewritten = _write(TargetOnly(), target, draft, refused, system, settings, tokenizer)
        clock.lap("target")
        going = [text for text in going if not text.fails(rewritten)]
        for text in going:
            number = text.number
            text.take(drafted[number], rewards[number], rewritten.get(number))
        if on_round is not None and going:
            on_round(Round(steps=tuple(text.steps[-1] for text in going), seconds=clock.seconds))
        yield from (text.result(tokenizer) for text in active if text.finished)
        active = [text for text in active if not text.finished]


def rewriting_number(number: int) -> int:
    """The request number whose noise draws the target's steps."""
    return -1 - number


@dataclass(slots=True)
class _Text:
    """A request in progress, with its steps so far."""

    request: Request
    steps: list[WrittenStep] = field(default_factory=list)
    finished: FinishReason | None = None
    error: Exception | None = None

    @property
    def number(self) -> int:
        return self.request.number

    @property
    def written(self) -> tuple[int, ...]:
        return tuple(token for step in self.steps for token in step.token_ids)

    def next_step(
        self, number: int, step: str | int, tokenizer: PreTrainedTokenizerBase | None
    ) -> Request:
        """A request that continues the text by one step."""
        written = self.written
        request = replace(
            self.request,
            number=number,
            prompt=(*self.request.prompt, *written),
            max_new_tokens=self.request.max_new_tokens - len(written),
        )
        if isinstance(step, int):
            return replace(request, max_new_tokens=min(step, request.max_new_tokens))
        if tokenizer is None:
            raise ConfigError(
                f"step = {step!r} is text; give the tokenizer that reads it, or a number of tokens"
            )
        end = StopStrings(tokenizer, (step,), len(request.padding) + len(request.prompt))
        return replace(request, criteria=(*request.criteria, end))

    def fail(self, error: Exception) -> None:
        """Ends the text before the step that failed."""
        self.error, self.finished = error, "error"

    def fails(self, written: Mapping[int, Row]) -> bool:
        """Ends the text if its row failed; whether it has ended."""
        row = written.get(self.number)
        if row is not None and row.error is not None:
            self.fail(row.error)
        return self.finished is not None

    def take(self, drafted: Row, reward: float, rewritten: Row | None) -> None:
        """Appends a step."""
        row = drafted if rewritten is None else rewritten
        self.steps.append(
            WrittenStep(
                start=len(row.request.prompt),
                drafted=tuple(drafted.new_ids),
                reward=reward,
                rewritten=None if rewritten is None else tuple(rewritten.new_ids),
            )
        )
        # The step's row contains the whole text, so its last token decides whether the text ends.
        whole = Row(self.request, row.ids[:-1], row.key)
        whole.extend(row.ids[-1:])
        self.finished = whole.finished

    def result(self, tokenizer: PreTrainedTokenizerBase | None) -> RewardGuidedText:
        assert self.finished is not None
        ids = list(self.written)
        text = None if tokenizer is None else str(tokenizer.decode(ids, skip_special_tokens=True))
        return RewardGuidedText(
            number=self.number,
            prompt_ids=self.request.prompt,
            token_ids=ids,
            text=text,
            finish_reason=self.finished,
            steps=tuple(self.steps),
            error=self.error,
        )


def _write(
    rule: Rule,
    target: PreTrainedModel,
    draft: PreTrainedModel,
    texts: Sequence[_Text],
    system: RewardGuided,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[int, Row]:
    """Writes one step of each text by the model of `rule`; finished rows by the text's number."""
    number_of = {
        text.number if rule.models == "draft" else rewriting_number(text.number): text
        for text in texts
    }
    requests = [
        text.next_step(number, system.step, tokenizer) for number, text in number_of.items()
    ]
    done: dict[int, Row] = {}

    def end(row: Row) -> None:
        done[number_of[row.request.number].number] = row

    settings = replace(settings, rule=rule)
    for record in decode(Pair.of(target, draft), requests, settings, end):
        for row in record.rows:
            if row.finished:
                end(row)
    return done


def _rewards(
    scorer: Scorer, texts: Sequence[_Text], drafted: Mapping[int, Row]
) -> dict[int, float]:
    """Rewards by texts' numbers; a text whose reward is NaN fails."""
    if not texts:
        return {}
    steps = [
        ScoredStep(
            prompt_ids=text.request.prompt,
            written_ids=text.written,
            step_ids=tuple(drafted[text.number].new_ids),
        )
        for text in texts
    ]
    rewards = [float(reward) for reward in scorer(steps)]
    if len(rewards) != len(steps):
        raise ConfigError(
            f"the scorer returned {len(rewards)} rewards for {len(steps)} steps; "
            "it must return one for each"
        )
    for text, reward in zip(texts, rewards, strict=True):
        if reward != reward:
            text.fail(
                NumericsError("the scorer returned NaN; check the reward model's files and dtype")
            )
    return {text.number: reward for text, reward in zip(texts, rewards, strict=True)}


def _numbered(requests: Sequence[Request], numbers: Sequence[int]) -> list[Request]:
    distinct = len(set(numbers)) == len(numbers) == len(requests)
    if not distinct or min(numbers, default=0) < 0:
        raise ConfigError(
            f"{len(numbers)} numbers, {len(set(numbers))} of them different, were given for "
            f"{len(requests)} texts; give each text a different one, 0 or more"
        )
    return [
        replace(request, number=number) for request, number in zip(requests, numbers, strict=True)
    ]
