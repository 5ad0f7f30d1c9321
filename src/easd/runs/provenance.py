"""What a run says of itself in run.json: models, versions, hardware, state of the checkout."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from easd.config import RunConfig
from easd.engine.pair import Pair, model_fingerprint, tokenizer_fingerprint
from easd.runs.schema import TOP


def provenance(pair: Pair, config: RunConfig) -> dict[str, Any]:
    """Everything that is known before the first step, in types that JSON knows."""
    return {
        "config": config.to_dict(),
        "signals": signals(config),
        **surroundings(pair),
    }


def surroundings(pair: Pair) -> dict[str, Any]:
    """The models, the versions, the hardware and the state of the checkout."""
    return {
        "models": _models(pair),
        "versions": _versions(),
        "hardware": _hardware(pair.target.device),
        "git": _git_state(),
    }


def fingerprints(pair: Pair) -> dict[str, str | None]:
    """Hashes of the pair's weights and tokenizer."""
    return {
        "target": model_fingerprint(pair.target),
        "draft": None if pair.draft is None else model_fingerprint(pair.draft),
        "tokenizer": tokenizer_fingerprint(pair.tokenizer),
    }


def _models(pair: Pair) -> dict[str, Any]:
    return {
        "pair": pair.name,
        "dtype": str(pair.target.dtype).removeprefix("torch."),
        "target_parameters": pair.target.num_parameters(),
        "draft_parameters": pair.draft.num_parameters() if pair.draft is not None else None,
        "fingerprints": fingerprints(pair),
    }


def signals(config: RunConfig) -> dict[str, Any]:
    """Where the signals of the tokens table come from."""
    settings = config.settings
    rule = settings.rule
    greedy = settings.temperature == 0
    raw = rule.needs_raw == "always" or (rule.needs_raw == "greedy" and greedy)
    return {
        "from": "rule" if hasattr(rule, "top_n") else "trace",
        "distribution": "raw" if raw else "sampling",
        "top_n": getattr(rule, "top_n", TOP),
    }


def _versions() -> dict[str, str]:
    packages = ("easd", "torch", "transformers", "pyarrow", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _hardware(device: torch.device) -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from and whether it has changes, if it is one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # An installed copy is nobody's checkout.
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
