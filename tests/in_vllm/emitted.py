"""Tests the tokens that an engine emitted against laws that differ from position to position."""

import torch
from scipy.stats import chi2

# Classes of tokens, by the logarithm of the law over the target.
EDGES = torch.tensor([-1.0, -0.3, 0.0, 0.3, 1.0])


def p_values(calls, rule):
    """Chi-square of rows' first verified tokens, as drawn from the law, and from the target.

    A token's class depends on the position's distributions; counts of classes are compared with the
    sum of their probabilities, by the exact covariance of the sum.
    """
    laws, targets, emitted = [], [], []
    for call in calls:
        step, row, position = call.step()
        law = rule.law(step)
        for index in (position == 0).nonzero()[:, 0].tolist():
            laws.append(law[row[index], 0])
            targets.append(step.target_probs[row[index], 0])
            emitted.append(call.output[row[index], 0])
    law, target = torch.stack(laws).double(), torch.stack(targets).double()
    classes = torch.bucketize((law / target.clamp_min(1e-30)).log().nan_to_num(), EDGES)
    kinds = torch.nn.functional.one_hot(classes, len(EDGES) + 1).double()  # [n, V, classes]
    seen = kinds[torch.arange(len(law)), torch.stack(emitted).long()].sum(0)
    return [_p_value(seen, (probs[..., None] * kinds).sum(1)) for probs in (law, target)]


def _p_value(seen, expected):
    """Of counts [classes] with probabilities [n, classes]."""
    covariance = expected.sum(0).diag() - expected.T @ expected
    values, axes = torch.linalg.eigh(covariance)
    large = values > 1.0
    off = ((seen - expected.sum(0)) @ axes)[large]
    return chi2.sf(float((off**2 / values[large]).sum()), int(large.sum()))
