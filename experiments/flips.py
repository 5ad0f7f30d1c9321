"""Where a rule's texts leave the target's, at which kinds of refused token, and what flips after.

    easd eval --pair smollm2 --task svamp:96 --set baselines=false --set trace=96 \
        --system target:temperature=0 --system easd:temperature=0,tau_h=1.5 --out runs/svamp
    python experiments/flips.py runs/svamp

Each run has the target, which is the baseline, and EASD, with every token recorded. A text's first
different token replaces a refused one, or it is rounding: where two tokens are almost as probable
for the target, a block's forward may prefer the other one, and in bfloat16 this is common.
"""

import argparse
from math import log
from pathlib import Path

import pandas as pd

from easd.report import metrics
from easd.report.metrics.accuracy import paired_rows, split
from easd.runs import open_run

KINDS = ("digit", "operator", "word", "other")
OPERATORS = frozenset("+-*/=<>%^\u2212\u00d7\u00f7")  # The last are minus, times and divided by.


def kind(text: str) -> str:
    """What the text of a token is, other than spaces."""
    plain = text.strip()
    if any(letter.isdigit() for letter in plain):
        return "digit"
    if any(letter.isalpha() for letter in plain):
        return "word"
    return "operator" if plain and OPERATORS.issuperset(plain) else "other"


def first_differences(found: metrics.Frames) -> pd.DataFrame:
    """One row for each text of the rule that is not the target's."""
    recorded = found.tokens.to_pandas().query("system == @found.focus and outcome != 'discarded'")
    keys = recorded[["task", "seed", "request", "position"]].itertuples(index=False, name=None)
    opinions = recorded[["outcome", "target_top_tokens", "target_top_probs"]]
    there: dict[tuple, list] = {}
    for key, row in zip(keys, opinions.itertuples(index=False), strict=True):
        there.setdefault(key, []).append(row)
    words = found.tokens.select(["token", "text"]).to_pandas().dropna()
    vocabulary = dict(zip(words["token"], words["text"], strict=True))
    pairs = paired_rows(found, found.baseline)
    rows = []
    for pair in pairs[pairs["system"] == found.focus].to_dict("records"):
        theirs, ours = found.texts.take([pair["baseline_row"], pair["row"]]).to_pylist()
        ids = (theirs["token_ids"], ours["token_ids"])
        if ids[0] == ids[1]:
            continue
        place, _, ((before, _), (after, _)) = split(
            *ids, (theirs["text"], ours["text"]), vocabulary
        )
        seen = there[pair["task"], pair["seed"], pair["index"], place + pair["prompt_tokens"]]
        top = dict(zip(seen[-1].target_top_tokens, seen[-1].target_top_probs, strict=True))
        probs = [top.get(each[place]) for each in ids if place < len(each)]
        rows.append(
            {
                "item": pair["item"],
                "place": place,
                "refused": any(row.outcome == "penalised" for row in seen),
                "gap": log(probs[1] / probs[0]) if len(probs) == 2 and all(probs) else None,
                "kind": kind(before),
                "from": before,
                "to": after,
                "lost": pair["baseline_correct"] and not pair["correct"],
                "gained": pair["correct"] and not pair["baseline_correct"],
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    for folder in parser.parse_args().runs:
        found = metrics.frames(open_run(folder))
        ours = found.samples[found.samples["system"] == found.focus]
        theirs = found.samples[found.samples["system"] == found.baseline]
        print(
            f"\n{folder}: of {len(ours)} texts, {found.baseline} has {theirs['correct'].sum()} "
            f"right and {found.focus} {ours['correct'].sum()}"
        )
        cut = [int((each["finish_reason"] == "length").sum()) for each in (theirs, ours)]
        print(f"{cut[0]} and {cut[1]} of them end at the limit of tokens")
        tokens = found.tokens.select(["system", "outcome", "text"]).to_pandas()
        tokens = tokens.query("system == @found.focus")
        tokens["kind"] = tokens["text"].map(kind)
        refused = tokens[tokens["outcome"] == "penalised"]
        print(f"{len(refused):,} of {ours['examined'].sum():,} examined tokens are refused")
        rows = first_differences(found)
        table = pd.DataFrame(
            {
                "refused": refused["kind"].value_counts(),
                "first to differ": rows[rows["refused"]]["kind"].value_counts(),
                "lost": rows[rows["refused"] & rows["lost"]]["kind"].value_counts(),
                "gained": rows[rows["refused"] & rows["gained"]]["kind"].value_counts(),
            },
            index=KINDS,
        )
        print(table.fillna(0).astype(int).to_string())
        print(
            f"{len(rows)} texts differ, {rows['refused'].sum()} of them first at a refused token, "
            f"half of them within the first {rows['place'].median():.0f} tokens"
        )
        rest = rows[~rows["refused"]]
        if len(rest):
            print(
                f"the other {len(rest)}: the target's log-probabilities of both tokens are "
                f"{rest['gap'].abs().max():.2f} apart at most; {rest['gap'].isna().sum()} unknown; "
                f"{rest['lost'].sum()} lost, {rest['gained'].sum()} gained"
            )
        for row in rows[rows["lost"] | rows["gained"]].to_dict("records"):
            print(
                f"{'lost' if row['lost'] else 'gained'}: {row['item']}, token {row['place']}, "
                f"{'refused' if row['refused'] else 'not refused'}: {row['kind']} "
                f"{row['from']!r} became {row['to']!r}"
            )


if __name__ == "__main__":
    main()
