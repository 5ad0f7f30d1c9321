"""vLLM as a system of a benchmark, in processes of an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from easd.engine.pair import Pair
from easd.errors import ConfigError, one_line, shown
from easd.pairs.smollm2 import ReducedHead
from easd.speed.bench.systems import Load, System, Timing
from easd.speed.plan import Shape

_WORKER = Path(__file__).with_name("vllm_worker.py")
_CPU_EXPAND = Path(__file__).parents[2] / "integrations/vllm/cpu_expand.py"
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # The engine's processor time is the worker's.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # The allocator keeps its memory, as with the tcmalloc that vLLM's manual asks for.
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
}
_FIND_VERSION = """
from importlib.metadata import packages_distributions, version
print(version(packages_distributions()["vllm"][0]))
"""


def vllm_version(python: Path) -> str:
    """The version of vLLM in an interpreter's environment.

    Raises:
        ConfigError: It cannot be run, or has no vLLM.
    """
    try:
        found = subprocess.run(
            [python, "-c", _FIND_VERSION], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ConfigError(
            f"vllm_python = {shown(str(python))} cannot be run ({error.strerror}); name the "
            "interpreter of an environment with vLLM, as ENVIRONMENT/bin/python"
        ) from None
    if found.returncode:
        raise ConfigError(
            f"the environment of vllm_python = {shown(str(python))} has no vLLM; install it there, "
            "or name another interpreter"
        )
    return found.stdout.strip()


@dataclass
class VllmEngines:
    """Engines of vLLM, one for each system and batch size, started when first needed.

    Attributes:
        python: interpreter of an environment with vLLM.
        pair: its weights are written to a temporary folder for vLLM to load. A draft's reduced
            head becomes the target's whole one, since vLLM has no reduced heads.
        length: tokens of the longest text.
    """

    python: Path
    pair: Pair
    length: int
    _scratch: TemporaryDirectory[str] = field(default_factory=TemporaryDirectory)
    _workers: dict[tuple[System, int], _Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _save(self.pair.target, self._folder("target"))
        if self.pair.draft is not None:
            head = self.pair.target.get_output_embeddings().weight  # type: ignore[union-attr]
            _save(self.pair.draft, self._folder("draft"), head)

    def decode_once(
        self, system: System, prompts: Sequence[Sequence[int]], load: Load, seed: int
    ) -> Timing:
        """Decodes every prompt once; starting an engine is not timed.

        Raises:
            ConfigError: vLLM ended with an error.
        """
        key = system, load.batch
        if key not in self._workers:
            log = self._folder(f"{system.name}, {load.batch}.log")
            self._workers[key] = _Worker(self.python, self._engine(*key), log)
        sampling = {
            "temperature": load.temperature,
            "max_tokens": load.tokens,
            "stop_token_ids": self.pair.end_tokens,
            "detokenize": False,
        }
        asked = {"prompts": [list(map(int, p)) for p in prompts], "seed": seed}
        answer = self._workers[key].ask({**asked, "sampling": sampling})
        timing = Timing(seconds=answer["seconds"], cpu_seconds=answer["cpu_seconds"])
        timing.tally.tokens = answer["tokens"]
        return timing

    def close(self) -> None:
        """Ends all processes and removes the weights."""
        for worker in self._workers.values():
            worker.close()
        self._scratch.cleanup()

    def _folder(self, name: str) -> Path:
        return Path(self._scratch.name) / name

    def _engine(self, system: System, batch: int) -> dict[str, Any]:
        """Arguments of vLLM's `LLM`."""
        models = [self.pair.target]
        length = self.length + system.most_gamma + 1
        drafting = {}
        if system.most_gamma:
            assert self.pair.draft is not None
            models.append(self.pair.draft)
            drafting["speculative_config"] = {
                "method": "draft_model",
                "model": str(self._folder("draft")),
                "num_speculative_tokens": system.most_gamma,
                "draft_sample_method": "probabilistic",
            }
        shapes = [Shape.of(model, "") for model in models]
        cache = sum(shape.cached * shape.width for shape in shapes) * (length + 128) * batch
        return {
            "model": str(self._folder("target")),
            "skip_tokenizer_init": True,
            "dtype": str(self.pair.target.dtype).removeprefix("torch."),
            "max_model_len": length,
            "max_num_seqs": batch,
            "kv_cache_memory_bytes": round(1.5 * cache) + 2**26,
            "enforce_eager": True,
            "enable_prefix_caching": False,  # Rounds decode the same prompts.
            **drafting,
        }


class _Worker:
    """A process with one engine of vLLM, which writes its errors to `log`."""

    def __init__(self, python: Path, engine: dict[str, Any], log: Path) -> None:
        environment = {
            **os.environ,
            **_ENVIRONMENT,
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        openmp = python.parent.parent / "lib" / "libiomp5.so"
        if openmp.exists():
            environment["LD_PRELOAD"] = str(openmp)
        options = {"engine": engine, "cpu_expand": str(_CPU_EXPAND)}
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [python, _WORKER, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        self._answer()

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `_answer` says why it ended.
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        said = self._log.read_text(errors="replace").strip().splitlines() or ["no word"]
        raise ConfigError(f"vLLM ended with: {one_line(said[-1])}")


def _save(model: PreTrainedModel, folder: Path, whole_head: Tensor | None = None) -> None:
    """Writes weights that vLLM can load."""
    tensors = None
    if isinstance(model.get_output_embeddings(), ReducedHead):
        tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("lm_head.")}
        assert whole_head is not None
        tensors["lm_head.weight"] = whole_head.detach().clone()
    model.save_pretrained(folder, state_dict=tensors)
