"""Where in training a checkpoint stands, by its name, and which of many are sampled (concept_patching.md section 4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from raypipe.errors import ModelError

_NAME = re.compile(
    r"(?:stage(?P<stage>\d+)-)?(?:global_)?(?:step|iter)[-_]?(?P<step>\d+)(?:-tokens(?P<tokens>\d+(?:\.\d+)?)(?P<unit>[BT]))?"
)
_UNITS = {"B": 1e9, "T": 1e12}
POLICIES = {
    "all": ((None, 1),),
    "apertus": ((10, 1), (20, 2), (30, 5), (None, 10)),
    "eurollm": ((10, 1), (20, 2), (None, 5)),
    "olmo": ((10, 1), (20, 2), (30, 10), (None, 20)),
}
"""Policy -> (first index beyond, stride): of the sorted names those are kept whose index the stride divides, and the last."""
LOG_TOKENS = "log_tokens:"


class Progress(NamedTuple):
    """Where a checkpoint stands.

    Attributes:
        stage: Training stage, 1 where the name says none.
        step: Training step.
        tokens: Training tokens; None where they are not known.
    """

    stage: int
    step: int
    tokens: float | None


def progress(name: str, tokens_per_step: int | None = None) -> Progress | None:
    """What a name such as `stage1-step1000-tokens5B`, `global_step1000`, `iter_1000` or `step-001000` says; None for any other.

    Args:
        name: The checkpoint's.
        tokens_per_step: Training tokens of a step, for names that say steps alone.
    """
    found = _NAME.fullmatch(name)
    if not found:
        return None
    step = int(found["step"])
    tokens = float(found["tokens"]) * _UNITS[found["unit"]] if found["tokens"] else None
    if tokens is None and tokens_per_step is not None:
        tokens = float(step * tokens_per_step)
    return Progress(int(found["stage"] or 1), step, tokens)


def sampled(names: Sequence[str], policy: str) -> tuple[list[str], list[str]]:
    """The sampled names in the order of stage and step, and the names that say no step.

    Args:
        names: Names of checkpoints, in any order; only those of the first stage among them are sampled.
        policy: One of `POLICIES`, or log_tokens:K for K names spaced evenly in the logarithm of tokens (of steps without them).

    Raises:
        ModelError: The policy is unknown, no name says a step, or two names say the same one.
    """
    at = {name: found for name in names if (found := progress(name))}
    unread = [name for name in names if name not in at]
    if not at:
        raise ModelError(f"none of {len(names)} checkpoints says its step, as step1000 does; name each revision")
    first = min(found.stage for found in at.values())
    order = sorted((name for name in at if at[name].stage == first), key=lambda name: at[name].step)
    for a, b in pairwise(order):
        if at[a].step == at[b].step:
            raise ModelError(f"checkpoints {a} and {b} say the same step; name each revision")
    if policy.startswith(LOG_TOKENS) and policy.removeprefix(LOG_TOKENS).isdecimal():
        amounts = np.log([max(1.0, at[name].tokens or at[name].step) for name in order])
        wanted = np.linspace(amounts[0], amounts[-1], max(2, int(policy.removeprefix(LOG_TOKENS))))
        kept = {int(np.abs(amounts - amount).argmin()) for amount in wanted} | {len(order) - 1}
        return [order[i] for i in sorted(kept)], unread
    if policy not in POLICIES:
        raise ModelError(f"sampling policy '{policy}': expected one of {', '.join(POLICIES)} or {LOG_TOKENS}K")
    strides = [next(stride for end, stride in POLICIES[policy] if end is None or i < end) for i in range(len(order))]
    return [name for i, name in enumerate(order) if i % strides[i] == 0 or i == len(order) - 1], unread
