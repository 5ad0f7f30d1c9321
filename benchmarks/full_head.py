"""Writes the draft of `smollm2` with its target's full head, since vLLM knows no reduced one.

    python benchmarks/full_head.py DRAFT

It prints the folder of the target. Any server can load both.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from easd.pairs.packaged import unpack
from easd.pairs.smollm2 import HEAD_TOKEN_IDS, SMOLLM2, draft_folder


def write(draft: Path) -> Path:
    """Writes the draft, and returns the target's folder."""
    target, ours = unpack(SMOLLM2, print), draft_folder()
    shutil.copytree(target, draft, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    shutil.copy(ours / "config.json", draft)
    tensors = load_file(ours / "model.safetensors")
    del tensors[HEAD_TOKEN_IDS]
    embedding = load_file(target / "model.safetensors")["model.embed_tokens.weight"]
    tensors |= {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    save_file(tensors, draft / "model.safetensors", {"format": "pt"})
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("draft", type=Path, help="a new folder")
    print(f"target: {write(parser.parse_args().draft)}")


if __name__ == "__main__":
    main()
