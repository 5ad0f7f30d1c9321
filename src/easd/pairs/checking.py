"""Checks a model's small files before its weights are read, and how two vocabularies fit."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError

from easd.engine.models.slots import context_window, input_device
from easd.engine.pair import Pair, differing_tokens
from easd.engine.vocabulary import VocabularyMap, vocabulary_map
from easd.errors import ModelError, one_line, shown

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_PATIENCE = 10  # seconds for the hub to answer
# Names of the number of layers in configs; the deepest models have hundreds.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MOST_LAYERS = 10_000
_LONGEST = 300
_LEAST_SHARE = 0.5
_EVERYDAY = (
    "A baker makes 12 trays of 8 rolls and sells 70 of them. How many are left? 12 * 8 = 96 rolls, "
    "so 96 - 70 = 26 are left.\n\ndef add(a, b):\n    return a + b\n"
)


def find_model(name: str) -> str | Path:
    """The folder of a name, or the name itself if it is a hub id.

    Raises:
        ModelError: It can only be a folder, and there is none.
    """
    try:
        folder = Path(name).expanduser()
        is_there, is_folder = folder.exists(), folder.is_dir()
        beside = folder.parent if folder.parent != Path() and folder.parent.is_dir() else None
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{quoted(name)} cannot be a folder or a hub id ({error})") from None
    if is_folder:
        return folder
    only_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if is_there or only_local or beside is not None:
        there = "" if beside is None else f"; {quoted(str(beside))} holds {_holds(beside)}"
        raise ModelError(f"{quoted(name)} is not a folder; give a model folder or a hub id{there}")
    return name


def check_model(name: str, *, trust_remote_code: bool = False) -> None:
    """Refuses a model that cannot be decoded with, before its weights are read.

    Args:
        name: hub id or folder.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ModelError: There is no such model, it is an encoder-decoder, it contains code that may
            not run, or it is an adapter and peft is not installed.
    """
    place = find_model(name)
    if isinstance(place, str):
        _ask_hub(place)
    if _read(place, _ADAPTER) is not None:
        if find_spec("peft") is None:
            raise ModelError(
                f"{quoted(name)} is an adapter, which needs peft; pip install peft, or merge it "
                "into its model"
            )
        return
    config = _read(place, _CONFIG)
    if not isinstance(config, dict):
        return  # The loader reports what is wrong with the file.
    if config.get("auto_map") and not trust_remote_code:
        raise ModelError(
            f"{quoted(name)} contains Python code (auto_map in {_CONFIG}), which runs only with "
            "--trust-remote-code (trust_remote_code=True); read that code before"
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{quoted(name)} is an encoder-decoder ({shown(config.get('model_type'))}); "
            "encoder-decoder models are not supported, only decoders"
        )
    for field in _LAYERS:
        layers = config.get(field)
        if isinstance(layers, int) and layers > _MOST_LAYERS:
            raise ModelError(
                f"{field} = {shown(layers)} in {_CONFIG} of {quoted(name)} is more "
                f"than any model has ({_MOST_LAYERS}); correct the file"
            )


def check_vocabularies(pair: Pair) -> float:
    """Maps the draft's tokenizer to the target's; warns if the draft can propose little.

    Returns:
        The share of the target's five most probable tokens, on average over a short text, that the
        draft can propose.

    Raises:
        ModelError: A tokenizer cannot be read as bytes.
    """
    assert pair.draft_tokenizer is not None, "the pair has two tokenizers"
    try:
        words = vocabulary_map(pair.tokenizer, pair.draft_tokenizer)
    except ModelError as error:
        differing = differing_tokens(pair.tokenizer, pair.draft_tokenizer)
        raise ModelError(
            f"the draft's tokenizer differs from the target's in {differing} entries, and one "
            f"cannot be mapped onto the other: {error}"
        ) from None
    _warn_without_shared_specials(words)
    window = context_window(pair.target)
    read = pair.tokenizer(_EVERYDAY, truncation=window is not None, max_length=window)
    ids = torch.tensor([read["input_ids"]], device=input_device(pair.target))
    with torch.inference_mode():
        logits = pair.target(input_ids=ids, use_cache=False).logits[0, :, : pair.vocab_size]
    best = logits.topk(min(5, pair.vocab_size)).indices.cpu()
    share = float(torch.isin(best, words.reachable).float().mean())
    if share < _LEAST_SHARE:
        warnings.warn(
            f"the draft can propose only {share:.0%} of the target's five most probable tokens, so "
            "few of its tokens will be accepted and gates hardly open; choose a draft with a "
            "vocabulary that is nearer",
            stacklevel=3,
        )
    return share


def _warn_without_shared_specials(words: VocabularyMap) -> None:
    """Warns if no special token of the draft is one of the target's."""
    special = [*{*words.draft.special.values(), *words.draft.endings}]
    if not (words.first[special] >= 0).any():
        warnings.warn(
            f"none of the draft's {len(special)} special tokens has a counterpart among the "
            f"target's {len(words.target.special)}, so the draft cannot propose the end of a text, "
            "which the target then writes alone; name both ends as eos_token in the tokenizers",
            stacklevel=4,
        )


def quoted(name: str) -> str:
    """A name or path quoted for messages, shortened if very long."""
    text = repr(name)
    return (
        text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    )


def _holds(folder: Path) -> str:
    found = sorted(each.name for each in folder.iterdir() if each.is_dir())
    return ", ".join(map(shown, found[:5])) + (", ..." if found[5:] else "") or "no folders"


def _ask_hub(name: str) -> None:
    """Asks once, since the loader would retry each of its files for a minute."""
    if isinstance(try_to_load_from_cache(name, _CONFIG), str):
        return
    try:
        HfApi().model_info(name, timeout=_PATIENCE)
    except GatedRepoError:
        return
    except Exception as error:  # The hub's client also raises errors of its transport.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{quoted(name)} is no folder here, and the hub does not know it or cannot be asked "
            f"({one_line(reason)}); check the name"
        ) from None


def _read(place: str | Path, file: str) -> Any:
    """The content of a model's JSON file; None if it is missing or damaged."""
    try:
        path = place / file if isinstance(place, Path) else hf_hub_download(place, file)
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, EntryNotFoundError):
        return None
