"""Entropy-aware speculative decoding: exact rules, a batched engine, evidence.

Names load on first use, so that importing the package, or a room that only reads tables, does not
import torch. Rules that EASD_RULES adds are among them.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easd.core.rules import EASD as EASD
    from easd.core.rules import RULES as RULES
    from easd.core.rules import DraftOnly as DraftOnly
    from easd.core.rules import RandomRefusal as RandomRefusal
    from easd.core.rules import Rule as Rule
    from easd.core.rules import Speculative as Speculative
    from easd.core.rules import TargetOnly as TargetOnly
    from easd.core.rules import make_rule as make_rule
    from easd.core.rules.contrast import Contrast as Contrast
    from easd.core.rules.ensemble import Ensemble as Ensemble
    from easd.core.rules.fly import FLy as FLy
    from easd.core.rules.keep_near_top import KeepNearTop as KeepNearTop
    from easd.core.rules.lenience import Lenient as Lenient
    from easd.core.rules.pool import Pool as Pool
    from easd.core.rules.pool_everywhere import PoolByGate as PoolByGate
    from easd.core.rules.pool_everywhere import PoolEverywhere as PoolEverywhere
    from easd.core.rules.relaxed_pool import RelaxedPool as RelaxedPool
    from easd.core.rules.sharpened import Greedy as Greedy
    from easd.core.rules.sharpened import Sharpened as Sharpened
    from easd.core.rules.typical_acceptance import TypicalAcceptance as TypicalAcceptance
    from easd.engine.generate import Generation as Generation
    from easd.engine.generate import generate as generate
    from easd.engine.pair import Pair as Pair
    from easd.engine.settings import Settings as Settings
    from easd.errors import EasdError as EasdError
    from easd.integrations.transformers import custom_generate as custom_generate
    from easd.pairs.loading import PAIRS as PAIRS
    from easd.pairs.loading import load_models as load_models
    from easd.pairs.loading import load_pair as load_pair
    from easd.runs import open_run as open_run

_RULES = "easd.core.rules"
_HOMES = {
    _RULES: ("EASD", "RULES", "DraftOnly", "RandomRefusal", "Rule", "Speculative", "TargetOnly"),
    f"{_RULES}.base": ("make_rule",),
    f"{_RULES}.contrast": ("Contrast",),
    f"{_RULES}.ensemble": ("Ensemble",),
    f"{_RULES}.fly": ("FLy",),
    f"{_RULES}.keep_near_top": ("KeepNearTop",),
    f"{_RULES}.lenience": ("Lenient",),
    f"{_RULES}.pool": ("Pool",),
    f"{_RULES}.pool_everywhere": ("PoolByGate", "PoolEverywhere"),
    f"{_RULES}.relaxed_pool": ("RelaxedPool",),
    f"{_RULES}.sharpened": ("Greedy", "Sharpened"),
    f"{_RULES}.typical_acceptance": ("TypicalAcceptance",),
    "easd.engine.generate": ("Generation", "generate"),
    "easd.engine.pair": ("Pair",),
    "easd.engine.settings": ("Settings",),
    "easd.errors": ("EasdError",),
    "easd.integrations.transformers": ("custom_generate",),
    "easd.pairs.loading": ("PAIRS", "load_models", "load_pair"),
    "easd.runs": ("open_run",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    if name == "__version__":
        return version("easd")
    # Classes of rules, also from files in EASD_RULES. Tools that look up dunder names must not
    # import torch.
    if name[:1].isupper() and name in (rules := _rules()):
        return rules[name]
    raise AttributeError(f"module 'easd' has no attribute {name!r}")


def __dir__() -> list[str]:
    loaded = _rules() if _RULES in sys.modules else {}
    return sorted({*__all__, "__version__", *loaded})


def _rules() -> dict[str, type]:
    return {kind.__name__: kind for kind in import_module(_RULES).RULES.values()}
