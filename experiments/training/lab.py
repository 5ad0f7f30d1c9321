"""Trains one `lab` pair: `python experiments/training/lab.py a|c|m|ad|t [--seed N] [--out DIR]`.

One thread, fixed steps, fresh data at every step: the same seed, versions and kind of
processor give the same weights.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as BytesToText
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from easd.pairs import lab

BATCH_SIZE = 128
WARMUP_STEPS = 100
FINAL_LEARNING_RATE = 0.05
ADAMW = {"betas": (0.9, 0.98), "weight_decay": 0.01}
MAX_GRAD_NORM = 1.0
LOG_EVERY = 100


def build_tokenizer(vocabulary: Sequence[str] = lab.VOCABULARY) -> PreTrainedTokenizerFast:
    """One word is one token, and number n has id n."""
    ids = {word: i for i, word in enumerate(vocabulary)}
    words = Tokenizer(WordLevel(ids, unk_token=lab.UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    return _wrapped(words, unk_token=lab.UNKNOWN)


def build_byte_tokenizer(*, whole_numbers: bool) -> PreTrainedTokenizerFast:
    """All bytes, one-character words, and with `whole_numbers` also those of two digits.

    Words begin with their space, as in most tokenizers.
    """
    digits, space = "0123456789", ByteLevel(add_prefix_space=False).pre_tokenize_str(" ")[0][0]
    merges = [(space, character) for character in (*digits, *lab.OPERATIONS, "?")]
    if whole_numbers:
        merges += [(space + tens, ones) for tens in digits for ones in digits]
    alphabet = sorted(ByteLevel.alphabet())
    names = [*alphabet, *map("".join, merges), lab.EOS, lab.PAD]
    built = Tokenizer(BPE({name: at for at, name in enumerate(names)}, merges))
    built.pre_tokenizer = ByteLevel(add_prefix_space=True)
    built.decoder = BytesToText()
    return _wrapped(built)


def _wrapped(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=lab.EOS,
        pad_token=lab.PAD,
        model_max_length=lab.CONTEXT_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **special,
    )


def build_model(recipe: lab.ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Pre-norm layers, learned positions, output layer not tied to the embeddings."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=lab.CONTEXT_LENGTH,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.width // lab.HEAD_SIZE,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # The default of 0.02 suits wide models; these then learn sums several times more slowly.
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPT2LMHeadModel(config)
    model.generation_config.do_sample = True
    model.generation_config.max_new_tokens = lab.MAX_NEW_TOKENS
    return model


def batches(
    problems: Iterator[lab.Problem], tokenizer: PreTrainedTokenizerFast
) -> Iterator[Tensor]:
    """Endless int64 [BATCH_SIZE, T]: prompt, solution, end of sequence; all of one length."""
    while True:
        rows = [f"{p.prompt} {p.solution}{lab.EOS}" for p in islice(problems, BATCH_SIZE)]
        yield torch.tensor(tokenizer(rows)["input_ids"])


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to `FINAL_LEARNING_RATE` of the peak."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (steps - WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine


def descend(
    model: torch.nn.Module,
    loss: torch.Tensor,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """One step against the gradient of a loss, whose norm is limited."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimiser.step()
    schedule.step()


def train(
    name: str,
    recipe: lab.ModelRecipe,
    seed: int,
    problems: Iterator[lab.Problem],
    tokenizer: PreTrainedTokenizerFast,
    teacher: GPT2LMHeadModel | None = None,
) -> tuple[GPT2LMHeadModel, dict]:
    """Trains one model on a stream of problems of one length; returns it with its log."""
    torch.manual_seed(seed)
    model = build_model(recipe, tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, **ADAMW)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, recipe.steps)
    )
    first = next(problems)
    prompt_length = len(tokenizer(first.prompt)["input_ids"])
    data = batches(chain([first], problems), tokenizer)
    losses, running, begin = [], 0.0, time.process_time()
    for step, batch in enumerate(islice(data, recipe.steps), start=1):
        inputs, labels = batch[:, :-1], batch[:, prompt_length:]
        length = labels.shape[1]
        logits = model(inputs, use_cache=False, logits_to_keep=length).logits
        if teacher is None:
            goal = labels.flatten()
        else:
            with torch.inference_mode():
                goal = teacher(inputs, use_cache=False, logits_to_keep=length).logits
            goal = goal.softmax(-1).flatten(0, 1)
        loss = F.cross_entropy(logits.flatten(0, 1), goal)
        descend(model, loss, optimiser, schedule)
        running += loss.item()
        if step % LOG_EVERY == 0:
            losses.append({"step": step, "loss": round(running / LOG_EVERY, 4)})
            print(f"{name} step {step}/{recipe.steps} loss {running / LOG_EVERY:.4f}", flush=True)
            running = 0.0
    log = {
        **asdict(recipe),
        "seed": seed,
        "parameters": model.num_parameters(),
        "cpu_seconds": round(time.process_time() - begin, 1),
        "losses": losses,
    }
    return model.eval(), log


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a folder that `from_pretrained` reads, with ordinary file permissions."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def main() -> None:
    """Trains target, then draft; writes both folders and `training.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", choices=[name.removeprefix("lab-") for name in lab.RECIPES])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for target/, draft/ and training.json")
    parser.add_argument("--target", type=Path, help="for lab-ad: distil from another target")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    pair = f"lab-{arguments.pair}"
    recipe = lab.recipe(pair)
    out = arguments.out or lab.folder(pair, "draft").parent
    tokenizer = draft_tokenizer = build_tokenizer()
    if recipe.two_tokenizers:
        tokenizer = build_byte_tokenizer(whole_numbers=False)
        draft_tokenizer = build_byte_tokenizer(whole_numbers=True)
    logs = {}
    if recipe.target_of is None:
        problems = lab.stream(pair, arguments.seed, "train", recipe.target.slip_rate)
        target, logs["target"] = train(pair, recipe.target, arguments.seed, problems, tokenizer)
        save(target, tokenizer, out / "target")
    else:
        teacher = arguments.target or lab.folder(pair, "target")
        target = GPT2LMHeadModel.from_pretrained(teacher)
        if arguments.target:
            save(target, tokenizer, out / "target")
    # Another seed is another stream of problems and another initialisation.
    draft_seed = arguments.seed if recipe.shared_data else arguments.seed + 1000
    draft, logs["draft"] = train(
        pair,
        recipe.draft,
        draft_seed,
        lab.stream(pair, draft_seed, "train", recipe.draft.slip_rate),
        draft_tokenizer,
        teacher=target if recipe.draft.distilled else None,
    )
    save(draft, draft_tokenizer, out / "draft")
    log = {
        "pair": pair,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "batch_size": BATCH_SIZE,
        "warmup_steps": WARMUP_STEPS,
        "optimiser": {"name": "AdamW", **ADAMW},
        **logs,
    }
    (out / "training.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
