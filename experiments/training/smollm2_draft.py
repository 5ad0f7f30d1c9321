"""Make the draft of the `smollm2` pair: generate text, distil, measure.

Run `generate`, `train` and `measure` in turn; README.md here has the recipe and its figures.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import smollm2_distill as distil
import smollm2_generate
import smollm2_measure
import torch
import typer
from safetensors.torch import save_file
from smollm2_distill import Recipe
from transformers import LlamaConfig

from easd.pairs.packaged import load_folder, unpack
from easd.pairs.smollm2 import HEAD_TOKEN_IDS, SMOLLM2, assemble_draft, draft_folder, load_draft

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
HELD_OUT = 32
SHIPPED = draft_folder()
WEIGHTS, LOG = "model.safetensors", "training.csv"

Work = Annotated[Path, typer.Option(help="Folder of shards and checkpoints.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]


def load_target(threads: int):
    torch.set_num_threads(threads)
    folder = unpack(SMOLLM2, print)
    target, tokenizer = load_folder(folder, dtype=torch.float32, device="cpu")
    return target.requires_grad_(False), tokenizer


@app.command()
def generate(
    work: Work = Path("runs/smollm2-draft"),
    waves: Annotated[int, typer.Option(help="Shards in all, of about 35,000 tokens.")] = 20,
    minutes: Annotated[float, typer.Option(help="Begin no new shard after this.")] = 1e9,
    seed: int = 1000,
    threads: Threads = 1,
) -> None:
    """Let the target write conversations; shards that exist are kept."""
    target, tokenizer = load_target(threads)
    smollm2_generate.generate(
        target, tokenizer, work, waves=waves, minutes=minutes, batch=128, slots=320, seed=seed
    )


def new_draft(target, layers: tuple[int, ...], head: torch.Tensor):
    """Return a draft of copied target layers."""
    settings = target.config.to_dict()
    settings |= {"num_hidden_layers": len(layers), "tie_word_embeddings": False}
    settings.pop("_model_name_or_path", None)
    config = LlamaConfig.from_dict(settings)
    tensors = {
        f"model.layers.{place}.{name}": tensor.clone()
        for place, layer in enumerate(layers)
        for name, tensor in target.model.layers[layer].state_dict().items()
    }
    norm = {"model.norm.weight": target.model.norm.weight.detach().clone()}
    return assemble_draft(target, config, tensors | norm, head)


def save_draft(draft, folder: Path) -> None:
    """Write what the target does not already hold: layers, final norm, the head's token ids."""
    folder.mkdir(parents=True, exist_ok=True)
    own = ("model.layers.", "model.norm.")
    tensors = {
        name: tensor.detach().bfloat16().contiguous()
        for name, tensor in draft.state_dict().items()
        if name.startswith(own)
    }
    tensors[HEAD_TOKEN_IDS] = draft.lm_head.token_ids.int()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # Written for the owner alone, and meant to be packaged.
    draft.config.to_json_file(folder / "config.json")


@app.command()
def train(
    work: Work = Path("runs/smollm2-draft"),
    output: Annotated[Path, typer.Option(help="Where the draft goes.")] = SHIPPED,
    tokens: Annotated[int, typer.Option(help="Positions to learn from.")] = Recipe.tokens,
    minutes: Annotated[float | None, typer.Option(help="Or end after this time.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = Recipe.learning_rate,
    start: Annotated[Path | None, typer.Option(help="Go on from this draft.")] = None,
    threads: Threads = 1,
) -> None:
    """Distil the target into four of its layers, on the shards of `generate`.

    A run that was interrupted goes on from the checkpoint in the work folder.
    """
    target, _ = load_target(threads)
    recipe = replace(Recipe(), tokens=tokens, minutes=minutes, learning_rate=learning_rate)
    shards = sorted(work.glob("shard-*.safetensors"))
    if not shards:
        raise typer.BadParameter(f"no shards in {work}; run the generate command first")
    if start:
        draft = load_draft(target, start)
    else:
        head = distil.frequent_tokens(shards, recipe.head_tokens)
        draft = new_draft(target, recipe.layers, head)
    conversations = [c for shard in shards for c in distil.load_shard(shard)]
    held_out, training = conversations[:HELD_OUT], conversations[HELD_OUT:]
    trainer = distil.Trainer(draft, recipe)
    checkpoint = work / "checkpoint.pt"
    distil.train(trainer, training, held_out, work / LOG, checkpoint)
    save_draft(draft, output)
    checkpoint.unlink(missing_ok=True)
    shutil.copy(work / LOG, output / LOG)
    (output / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")


@app.command()
def measure(
    gsm8k: Annotated[Path, typer.Option(help="JSON lines with a field `problem`.")],
    svamp: Annotated[Path, typer.Option(help="The same.")],
    work: Work = Path("runs/smollm2-draft"),
    draft: Annotated[Path, typer.Option(help="Folder of the draft.")] = SHIPPED,
    count: Annotated[int, typer.Option(help="Rows of answers per data set.")] = 64,
    slots: Annotated[int, typer.Option(help="Tokens per row, prompt included.")] = 320,
    gamma: int = 4,
    threads: Threads = 1,
) -> None:
    """Print the acceptance rate at temperature 1 on unseen questions, and the cost ratio."""
    target, tokenizer = load_target(threads)
    drafted = load_draft(target, draft)
    work.mkdir(parents=True, exist_ok=True)
    for data in (gsm8k, svamp):
        answers = smollm2_measure.answered(
            target, tokenizer, data, work, count=count, skip=0, slots=slots, seed=1
        )
        rates = smollm2_measure.acceptance_rates(target, drafted, answers, gamma)
        for name, (rate, low, high) in rates.items():
            print(f"{data.stem}: acceptance {name} {rate:.3f} [{low:.3f}, {high:.3f}]")
    one, whole = smollm2_measure.cost(target, drafted)
    print(f"cost ratio {one / whole:.3f}: {one * 1e3:.1f} / {whole * 1e3:.1f} ms")


if __name__ == "__main__":
    app()
