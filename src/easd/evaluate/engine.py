"""Evaluates systems with a pair of models in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from easd.engine.pair import Pair, provenance
from easd.engine.record import tokens_table, top_n_of
from easd.engine.settings import Settings
from easd.errors import ConfigError
from easd.evaluate.config import StudyConfig, System
from easd.evaluate.decoding import Batch, decode_by_rule, decode_reward_guided
from easd.evaluate.prompting import encode_task
from easd.evaluate.reward_guided import RewardGuided
from easd.evaluate.rewards import Scorer, load_reward_model
from easd.evaluate.runner import Chunk, Decoded, GridRun
from easd.pairs.lab import STEP_TOKENS
from easd.runs.schema import VOCABULARY
from easd.runs.texts import TokenTexts
from easd.tasks import Task


class Evaluation(GridRun[System]):
    """A study of a pair in a run folder, new or resumed."""

    config: StudyConfig

    def __init__(
        self,
        config: StudyConfig,
        pair: Pair,
        tasks: Sequence[Task],
        folder: str | Path,
        fitted: Mapping[str, Any] | None = None,
    ) -> None:
        """Encodes all prompts and takes the folder.

        Raises:
            TraceError: The folder holds something else, or a run with other settings.
            InputError: A prompt does not fit the context window.
            ConfigError: A reward-guided system has no reward model.
        """
        self.config = config
        self.pair = pair
        self._texts = TokenTexts(pair.tokenizer)
        self._prompts = {task.name: self._encode(task) for task in tasks}
        self._rewards = {
            system.name: self._load_reward(system) for system in config.systems if system.reward
        }
        super().__init__(config, tasks, folder, fitted)

    def about(self) -> dict[str, Any]:
        return provenance(self.pair)

    def decode(self, chunk: Chunk[System]) -> Decoded:
        batch = self._decode(chunk)
        tokens = vocabulary = None
        if batch.tokens is not None:
            top_n = top_n_of(chunk.system.settings.rule)
            texts = self._texts.of(batch.tokens)
            vocabulary = pa.table([list(texts), list(texts.values())], VOCABULARY)
            tokens = tokens_table(batch.tokens, texts, run=chunk.name, top_n=top_n)
        size = min(chunk.system.settings.batch_size, len(batch.texts))
        return Decoded(
            texts=[{**text, **self._written(text["token_ids"])} for text in batch.texts],
            timing={"batch": size, **batch.timing},
            tokens=tokens,
            vocabulary=vocabulary,
        )

    def _written(self, token_ids: list[int]) -> dict[str, Any]:
        text = str(self.pair.tokenizer.decode(token_ids, skip_special_tokens=True))
        return {"text": text, "new_tokens": len(token_ids)}

    def _decode(self, chunk: Chunk[System]) -> Batch:
        prompts = self._prompts[chunk.task.name][chunk.first : chunk.first + len(chunk.items)]
        settings, reward = self.settings(chunk), chunk.system.reward
        if reward is None:
            traced = chunk.first < self.config.trace
            return decode_by_rule(
                self.pair, prompts, settings, first=chunk.first, with_tokens=traced
            )
        system, scorer = self._rewards[chunk.system.name]
        return decode_reward_guided(
            self.pair, prompts, settings, first=chunk.first, system=system, scorer=scorer
        )

    def decoded_texts(self, samples: pa.Table) -> list[tuple[list[int], list[int], str]]:
        """Token ids of prompt and text, and the item's id, of every row of the samples table."""
        return [
            (self._prompts[row["task"]][row["index"]], row["token_ids"], row["item"])
            for row in samples.to_pylist()
            if row["token_ids"]
        ]

    def settings(self, chunk: Chunk[System]) -> Settings:
        """The system's settings, completed by the task's token limit and stop strings."""
        settings = chunk.system.settings
        return replace(
            settings,
            seed=chunk.seed,
            max_new_tokens=settings.max_new_tokens or chunk.task.max_new_tokens,
            stop=settings.stop or chunk.task.stop,
        )

    def _load_reward(self, system: System) -> tuple[RewardGuided, Scorer]:
        """Threshold, steps and reward model of a reward-guided system."""
        reward = system.reward
        assert reward is not None
        if self.pair.draft is None:
            raise ConfigError(f"{system.name!r} drafts steps; name a draft model")
        if self.pair.draft_tokenizer is not None:
            raise ConfigError(
                f"{system.name!r} needs a draft that writes the target's tokens; name a draft that "
                "shares the target's tokenizer"
            )
        name, step = reward.model or self.pair.name, reward.step
        if reward.model is None and name not in STEP_TOKENS:
            raise ConfigError(
                f"{system.name!r} needs a reward model, and {name!r} has none; give one, such as "
                "rsd:model=FOLDER"
            )
        scorer = load_reward_model(name, self.pair.tokenizer, device=str(self.pair.target.device))
        step = step or STEP_TOKENS.get(name, RewardGuided().step)
        return RewardGuided(delta=reward.delta, step=step), scorer

    def _encode(self, task: Task) -> list[list[int]]:
        systems = self.config.systems
        new = max(each.settings.max_new_tokens or task.max_new_tokens for each in systems)
        return encode_task(task, self.pair, self.config.base.chat, new)
