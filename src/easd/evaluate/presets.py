"""Systems of predefined grids: the paper's ablation with controls, and threshold sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easd.runs import Run

SWEEP_TAU_H = (1.5, 2.0, 2.5)
SWEEP_TAU_O = (0.6, 0.8, 1.0)
_AROUND = (0.75, 1.0, 1.25)


def ablation(gate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Table 2 of arXiv:2512.23765 with further controls; see also `matched_refusal`.

    All systems share the fields of `gate`, such as tau_h.
    """

    def system(name: str, rule: str, **fields: Any) -> dict[str, Any]:
        return {"name": name, "rule": {"name": rule, **gate, **fields}}

    overlap = {key: value for key, value in gate.items() if key != "tau_h"}
    return [
        {"name": "target", "rule": "target"},
        {"name": "speculative", "rule": "speculative"},
        system("easd", "easd"),
        system("without overlap (entropy only)", "easd-without-overlap"),
        system("without draft entropy", "easd-without-draft-entropy"),
        system("without both (target entropy only)", "easd-without-both"),
        {"name": "overlap only", "rule": {"name": "overlap-only", **overlap}},
        system("redraw from the target (null control)", "easd", redraw="target"),
    ]


def matched_refusal(run: Run, gate: Mapping[str, Any], easd: str = "easd") -> dict[str, Any]:
    """Random refusal at the opening rate of the gate of `easd` in a finished run."""
    samples = run.samples.to_pandas()
    own = samples[samples["system"] == easd]
    rate = round(float(own["gate_open"].sum() / max(own["examined"].sum(), 1)), 6)
    shared = {key: gate[key] for key in ("draft_at_bonus",) if key in gate}
    return {
        "name": "random refusal at easd's rate",
        "rule": {"name": "random-refusal", "rate": rate, **shared},
    }


def around(tau_h: float) -> list[float]:
    """Thresholds to try around a calibrated one."""
    return [round(tau_h * factor, 4) for factor in _AROUND]


def sweep(
    tau_h: Sequence[float], tau_o: Sequence[float], gate: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Every pair of thresholds, beside the target and lossless speculation."""
    return [
        {"name": "target", "rule": "target"},
        {"name": "speculative", "rule": "speculative"},
        *(
            {
                "name": f"easd tau_h={h:g} tau_o={o:g}",
                "rule": {"name": "easd", **gate, "tau_h": h, "tau_o": o},
            }
            for h in tau_h
            for o in tau_o
        ),
    ]
