"""The rows of the product's own targets, by name, as tests look them up."""

from __future__ import annotations

from collections.abc import Mapping

from vitdeploy.targets import Int8Rules, Target, targets

TARGETS: Mapping[str, Target] = {target.name: target for target in targets()}
RULES: Mapping[str, Int8Rules] = {name: target.int8 for name, target in TARGETS.items() if target.int8 is not None}
