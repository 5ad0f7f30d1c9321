"""What the columns of all metrics are called in print, their unit, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "text",
    "count",
    "percent",
    "points",
    "size",
    "p",
    "factor",
    "ms",
    "nats",
    "number",
    "large",
    "yes",
]


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, how its values are printed, and its definition.

    Shares are fractions in the tables; `percent`, `points` (with a sign) and `size` (points without
    one) print them times 100.
    """

    heading: str
    kind: Kind
    definition: str


_WITHIN = "95 % interval over problems in brackets"

COLUMNS: dict[str, Column] = {
    "task": Column("task", "text", "the task"),
    "system": Column("system", "text", "a rule with its fields and settings"),
    "baseline": Column("baseline", "text", "the system compared with"),
    "samples": Column("samples", "count", "decoded and graded texts"),
    "problems": Column("problems", "count", "different items among them"),
    "pairs": Column("pairs", "count", "samples of the same item and seed that all systems have"),
    "paired": Column("compared", "count", "samples that differences are taken on"),
    "wanted": Column("asked for", "count", "items times seeds"),
    "missing": Column("missing", "count", "samples not decoded yet"),
    "failed": Column("failed gradings", "count", "texts whose grading failed; counted as wrong"),
    "skipped": Column("skipped lines", "count", "lines of the data that could not be read"),
    "cut_off": Column("cut off", "percent", "share of texts ended by the token limit"),
    "new_tokens": Column("tokens a text", "number", "mean length of a decoded text"),
    "accuracy": Column("accuracy", "percent", f"share of samples that are right; {_WITHIN}"),
    "baseline_accuracy": Column("baseline's", "percent", "the baseline's accuracy on the same"),
    "difference": Column(
        "difference", "points", f"accuracy less the baseline's, sample by sample; {_WITHIN}"
    ),
    "p_value": Column("p", "p", "exact sign-flip test over problems (McNemar's for one seed)"),
    "p_holm": Column("Holm p", "p", "p adjusted for all comparisons of this table"),
    "gained": Column("gained", "count", "samples the baseline has wrong and the system right"),
    "lost": Column("lost", "count", "samples the baseline has right and the system wrong"),
    "unpaired": Column(
        "unpaired interval", "points", "the interval had the two answered different problems"
    ),
    "narrowing": Column("narrower", "factor", "unpaired interval's width / the paired one's"),
    "p_equivalent": Column(
        "p equal", "p", "two one-sided tests of a difference within the margin, Holm-adjusted"
    ),
    "detectable": Column(
        "detectable",
        "size",
        "the smallest difference that a run like this finds with 80 % power at the "
        "first step of Holm's adjustment",
    ),
    "same_text": Column("same text", "percent", "share of pairs with exactly the same tokens"),
    "finding": Column(
        "finding",
        "text",
        "▲ better or ▼ worse by the adjusted p; = equivalent within the margin, or the same texts; "
        "? cannot tell",
    ),
    "verdict": Column("what may be said", "text", "the finding in words"),
    "units": Column("units", "count", "groups of texts decoded and timed together"),
    "batch": Column("batch", "count", "most texts decoded at once"),
    "tokens": Column("tokens", "count", "tokens decoded"),
    "seconds": Column("seconds", "number", "wall time of decoding, recording left out"),
    "tokens_per_second": Column(
        "tok/s", "number", "tokens decoded a second of wall time; 95 % interval over units"
    ),
    "improvement": Column(
        "speed-up",
        "factor",
        "walltime improvement: the baseline's seconds a token / the system's, same run; "
        "95 % interval over units",
    ),
    "draft_ms": Column("draft", "ms", "wall time of drafting a token of the text"),
    "target_ms": Column("target", "ms", "wall time of the target's forwards a token"),
    "verify_ms": Column("verify", "ms", "wall time of processors and verification a token"),
    "other_ms": Column(
        "other", "ms", "taking in prompts, committing tokens, and the rest, a token"
    ),
    "draft_forward_ms": Column("draft forward", "ms", "one batched forward of the draft"),
    "target_forward_ms": Column("target forward", "ms", "one batched forward of the target"),
    "cost": Column("c", "number", "cost coefficient: draft forward time / target forward time"),
    "block_cost": Column(
        "block / token",
        "factor",
        "the target's forward over a whole block / the baseline's forward over one token; "
        "Theorem 3.8 takes it to be 1",
    ),
    "gamma": Column("gamma", "count", "draft tokens asked for in a block"),
    "predicted": Column(
        "predicted", "factor", "speed-up by Theorem 3.8 of arXiv:2211.17192 from alpha, gamma, c"
    ),
    "predicted_wide": Column(
        "with block cost", "factor", "the same divided by what a block's forward costs more"
    ),
    "acceptance": Column("acceptance rate", "percent", f"accepted / examined; {_WITHIN}"),
    "utilisation": Column("draft utilisation", "percent", f"accepted / proposed; {_WITHIN}"),
    "block_efficiency": Column(
        "tokens a forward", "number", f"block efficiency: tokens per target forward; {_WITHIN}"
    ),
    "rewritten": Column(
        "steps rewritten", "percent", f"of reward-guided decoding, by the target; {_WITHIN}"
    ),
    "by_draft": Column("by draft", "count", "tokens of the text that the draft wrote"),
    "by_target": Column("by target", "count", "tokens of the text drawn at the target"),
    "draft_share": Column("draft's share", "percent", "tokens by the draft / tokens"),
    "target_forwards": Column("target forwards", "count", "counted for each text"),
    "draft_forwards": Column("draft forwards", "count", "counted for each text"),
    "target_positions": Column("target positions", "count", "positions the target processed"),
    "draft_positions": Column("draft positions", "count", "positions the draft processed"),
    "flops": Column("FLOPs", "large", "2 times parameters times positions of both models"),
    "flops_per_token": Column("FLOPs a token", "large", "FLOPs / tokens"),
    "relative_flops": Column("of baseline's", "factor", "FLOPs a token / the baseline's"),
    "examined": Column("examined", "count", "drafted positions up to each block's first refusal"),
    "penalised": Column("penalised", "count", "draft tokens refused by the gate"),
    "gate_rate": Column("gate open", "percent", f"share of examined positions; {_WITHIN}"),
    "penalty_rate": Column("penalty rate", "percent", f"penalised / examined; {_WITHIN}"),
    "draft_entropy_rate": Column(
        "draft entropy", "percent", f"share where it exceeds tau_h; {_WITHIN}"
    ),
    "target_entropy_rate": Column(
        "target entropy", "percent", f"share where it exceeds tau_h; {_WITHIN}"
    ),
    "overlap_rate": Column("overlap", "percent", f"share where it reaches tau_o; {_WITHIN}"),
    "no_op": Column("no-op", "yes", "the gate opens at fewer than 0.1 % of examined positions"),
    "request_p50": Column(
        "median s", "number", "seconds from request to answer, with what was sent again: median"
    ),
    "request_p95": Column("95 % s", "number", "the same that 95 % of requests do not exceed"),
    "penalties": Column("penalties", "text", "whether the text had a penalised token"),
    "grid": Column("grid", "text", "rule and settings that the grid's systems share"),
    "tau_h": Column("tau_h", "nats", "entropy threshold"),
    "tau_o": Column("tau_o", "number", "overlap threshold"),
    "model": Column("model", "text", "draft or target"),
    "low": Column("from", "nats", "the bin's lower end"),
    "high": Column("to", "nats", "the bin's upper end"),
    "positions": Column("positions", "count", "positions of traced items"),
    "share": Column("share", "percent", "of all counted here"),
    "mean": Column("mean", "nats", "mean entropy"),
    "p50": Column("median", "nats", "median entropy"),
    "p90": Column("90 %", "nats", "entropy that 90 % of positions do not exceed"),
    "p95": Column("95 %", "nats", "likewise 95 %"),
    "p99": Column("99 %", "nats", "likewise 99 %"),
    "above_tau_h": Column("above tau_h", "percent", "share of positions above the threshold"),
    "overlap": Column("overlap", "number", "share of the top_n tokens in common"),
    "draft_entropy_met": Column("draft entropy", "yes", "whether it exceeds tau_h"),
    "target_entropy_met": Column("target entropy", "yes", "whether it exceeds tau_h"),
    "overlap_met": Column("overlap", "yes", "whether it reaches tau_o"),
    "group": Column("group", "count", "fifth of the texts, 1 the surest"),
    "entropy": Column("mean entropy", "nats", "target's, mean over a text's tokens"),
    "entropy_low": Column("from", "nats", "least mean entropy of the group"),
    "entropy_high": Column("to", "nats", "greatest mean entropy of the group"),
    "correlation": Column(
        "correlation", "number", f"of mean target entropy with being right (Pearson); {_WITHIN}"
    ),
    "token": Column("id", "text", "token id"),
    "refused": Column("refused", "text", "the penalised token"),
    "count": Column("count", "count", "penalties of this token in traced items"),
    "refusal_rate": Column("refused of examined", "percent", "count / examined"),
    "target_prob": Column("target's p", "percent", "mean probability of the token at the target"),
    "instead": Column("instead", "text", "most frequent replacements"),
    "replacement": Column("replacement", "text", "the token drawn instead"),
    "kind": Column("rule", "text", "the rule's name"),
    "fields": Column("fields", "text", "every field of the rule"),
    "settings": Column("own settings", "text", "settings that differ from those shared"),
    "part": Column("part", "text", "part of the description"),
    "name": Column("name", "text", "name of the entry"),
    "value": Column("value", "text", "its value"),
}


def column(name: str) -> Column:
    """A column by name; one that is not known is printed as text under its own name."""
    return COLUMNS.get(name, Column(name.replace("_", " "), "text", ""))


def interval_of(name: str) -> tuple[str, str]:
    """The columns that hold a value's interval, where it has one."""
    return f"{name}_low", f"{name}_high"
