"""The reward models of the `lab` pairs: where they are, and what a step is to them.

`experiments/training/lab_reward.py` trains them. No import of torch.
"""

from pathlib import Path

from easd.pairs import lab

# Written in full a step is `+ 5 = 42`, and the last one `# 42 <eos>`; else it is a running total.
STEP_TOKENS = {name: 4 if recipe.full_steps else 1 for name, recipe in lab.RECIPES.items()}


def reward_folder(pair: str) -> Path:
    """Folder of a pair's packaged reward model, in the layout of `from_pretrained`."""
    return lab.folder(pair, "draft").parent / "reward"
