"""What overlap, EASD's gate and a second opinion mean within a family and between two.

    EASD_DATA=FOLDER easd diagnose --pair smollm2 --task gsm8k:100 --positions own.parquet
    EASD_DATA=FOLDER easd diagnose --pair smollm2-gemma3 --task gsm8k:100 --positions other.parquet
    python experiments/cross_family.py own.parquet other.parquet

Intervals are 95 %, by text.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from easd.diagnose.effects import mean
from easd.diagnose.pool_fit import fit_pool, held_out_laws
from easd.diagnose.positions import TOP_N, Positions, gate, met


def interval(values, texts, digits=3, scale=1.0):
    """A mean with its interval, by text."""
    found = mean(np.asarray(values, float) * scale, texts)
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def rows(positions, tau_h, tau_o):
    """Names and values of the table's lines for one file."""
    values, texts = positions.values, positions.texts
    shared = values["shared_top"]
    yield "texts, positions", f"{positions.n_texts}, {len(positions):,}"
    for model in ("target", "draft"):
        yield f"right token on top, {model}", interval(values[f"{model}_best"], texts)
        yield f"mean entropy, {model}", interval(values[f"{model}_entropy"], texts, 2)
    for count in range(TOP_N + 1):
        yield f"{count} of {TOP_N} tokens shared", f"{(shared == count).mean():.3f}"
    yield "mean overlap", interval(shared / TOP_N, texts)
    low = np.minimum(values["draft_entropy"], values["target_entropy"]) > tau_h
    conditions = met(positions, tau_h, tau_o)
    for name, holds in conditions.items():
        yield f"condition: {name}", interval(holds, texts)
    overlap = conditions["overlap"]
    yield "overlap, where both are uncertain", interval(overlap[low], texts[low])
    is_open = gate(positions, tau_h, tau_o)
    yield "gate open", interval(is_open, texts)
    right = (
        values["target_best"][low & overlap].mean(),
        values["target_best"][low & ~overlap].mean(),
    )
    yield (
        "target's top right, both uncertain, with and without overlap",
        (f"{right[0]:.3f}, {right[1]:.3f}"),
    )
    before, after = values["target_prob"], values["open_easd"]
    yield "right token's probability at the gate, target", interval(before[is_open], texts[is_open])
    yield "the same under EASD", interval(after[is_open], texts[is_open])
    yield "EASD minus target there", interval((after - before)[is_open], texts[is_open])
    for where, mask in (("at the gate", is_open), ("everywhere", positions.everywhere)):
        fit = fit_pool(positions, mask)
        low_b, high_b = fit.b_low or 0.0, fit.b_high or 0.0
        yield f"pool {where}", f"a {fit.a:.2f}, b {fit.b:+.2f} [{low_b:+.2f}, {high_b:+.2f}]"
    best, _ = held_out_laws(positions, positions.everywhere)
    gain = best - values["target_best"]
    yield "pool's top right minus target's, points, held out", interval(gain, texts, 2, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("positions", type=Path, nargs="+")
    parser.add_argument("--tau-h", type=float, default=1.5)
    parser.add_argument("--tau-o", type=float, default=0.8)
    options = parser.parse_args()
    columns = [
        dict(rows(Positions.of(pq.read_table(file)), options.tau_h, options.tau_o))
        for file in options.positions
    ]
    print(f"| | {' | '.join(file.stem for file in options.positions)} |")
    print("|---|" + "---|" * len(columns))
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


if __name__ == "__main__":
    main()
