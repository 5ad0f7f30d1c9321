"""Rules by name. A new rule is a file in this folder, or a file listed in EASD_RULES."""

from importlib import import_module
from pkgutil import iter_modules

from easd.core.rules.base import (
    PRESETS,
    RULES,
    Rule,
    as_rule,
    field_names,
    load_rule_files,
    make_rule,
    rule_name,
    rule_names,
    rule_type,
    summary_of,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
load_rule_files()

from easd.core.rules.easd import EASD  # noqa: E402
from easd.core.rules.random_refusal import RandomRefusal  # noqa: E402
from easd.core.rules.single_model import DraftOnly, TargetOnly  # noqa: E402
from easd.core.rules.speculative import Speculative  # noqa: E402

__all__ = [
    "EASD",
    "PRESETS",
    "RULES",
    "DraftOnly",
    "RandomRefusal",
    "Rule",
    "Speculative",
    "TargetOnly",
    "as_rule",
    "field_names",
    "make_rule",
    "rule_name",
    "rule_names",
    "rule_type",
    "summary_of",
]
