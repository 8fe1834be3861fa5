"""Where in training a checkpoint stands, by its name, and which of many are sampled (concept_patching.md section 4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raypipe.errors import ModelError
from raypipe.models.library import hub_revisions, model_directories

# What names say, of the Hub and of sub-directories; `number` is a stage without a phase: later ones are not sampled.
HUB = r"(?:stage(?P<number>\d+)-)?(?:global_)?(?:step|iter)[-_]?(?P<step>\d+)(?:-tokens(?P<tokens>\d+(?:\.\d+)?[BT]))?"
DIRECTORIES = rf"(?:.*/)?{HUB}"
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)([BT]?)")
_UNITS = {"": 1.0, "B": 1e9, "T": 1e12}
SAMPLED = "sampled:"  # and a policy
POLICIES = {
    "all": ((None, 1),),
    "apertus": ((10, 1), (20, 2), (30, 5), (None, 10)),
    "eurollm": ((10, 1), (20, 2), (None, 5)),
    "olmo": ((10, 1), (20, 2), (30, 10), (None, 20)),
}
"""Policy -> (first index beyond, stride): of the sorted names those are kept whose index the stride divides, and the last."""
LOG_TOKENS = "log_tokens:"


class Progress(NamedTuple):
    """Where a checkpoint stands: its stage, step, tokens if known, and the name of its phase, if any.

    The stage is the place of its phase among those of the model, from 1, without phases what its name says, else 1. In a later phase the
    last step of the phase before is added.
    """

    stage: int
    step: int
    tokens: float | None
    phase: str = ""


class _Said(NamedTuple):
    """What a name says: phase and stage, own step, tokens."""

    place: tuple[str, int]
    step: int
    tokens: float | None


@dataclass(frozen=True)
class Naming:
    """How a model's checkpoints are named.

    Attributes:
        pattern: Regular expression of a whole name, with the group step and optionally stage (the phase, else the folder that the
            name says) and tokens (all so far, such as `5B`). Unless told otherwise `stage1-step1000-tokens5B`, `global_step1000`,
            `iter_1000`, `step-001000` and the like, in a folder or not.
        phases: The phases in their order; empty takes the natural order of their names.
        tokens_per_step: Training tokens of a step, for names that say steps alone; a later `stage2-` counts its steps anew.
    """

    pattern: str = DIRECTORIES
    phases: tuple[str, ...] = ()
    tokens_per_step: int | None = None

    def sort(self, names: Iterable[str]) -> list[str]:
        """The names phase by phase, those without one first, and in each `step-2` before `step-10`."""
        return sorted(names, key=lambda name: (self._rank(self._phase(name)), natural(name), name))

    def read(self, names: Iterable[str]) -> dict[str, Progress]:
        """Where those of a model's checkpoints stand whose names say a step; steps of a later phase count on from those there.

        Raises:
            ModelError: The phases there are others than `phases`, or a name says something that is no step or amount.
        """
        said = {name: found for name in names if (found := self._said(name))}
        places = sorted({found.place for found in said.values()}, key=lambda place: (self._rank(place[0]), place))
        phases = list(dict.fromkeys(phase for phase, _ in places if phase))
        if self.phases and set(phases) != set(self.phases):
            raise ModelError(
                f"models.phases: found {', '.join(self.phases)}; expected the phases of the checkpoints that say a step, "
                f"each once and in their order: {', '.join(phases) or 'there are none'}"
            )
        made, before = dict[str, Progress](), 0
        for stage, (phase, number) in enumerate(places, 1):
            own = {name: found for name, found in said.items() if found.place == (phase, number)}
            for name, found in own.items():
                step, tokens = before + found.step, found.tokens
                if tokens is None and self.tokens_per_step is not None and (phases or number == 1):
                    tokens = float(step * self.tokens_per_step)
                made[name] = Progress(stage if phases else number, step, tokens, phase)
            before += max(found.step for found in own.values()) if phases else 0
        return made

    def _said(self, name: str) -> _Said | None:
        found = re.fullmatch(self.pattern, name)
        groups = found.groupdict() if found else {}
        if not groups.get("step"):
            return None
        step, tokens = groups["step"], groups.get("tokens") or ""
        amount = _TOKENS.fullmatch(tokens)
        if not step.isdecimal() or (tokens and not amount):
            raise ModelError(
                f"checkpoint {name}: its name is read as step '{step}' and tokens '{tokens}'; expected a whole number and an amount "
                "such as 5B; check models.checkpoint_pattern"
            )
        seen = float(amount[1]) * _UNITS[amount[2]] if amount else None
        return _Said((self._phase(name), int(groups.get("number") or 1)), int(step), seen)

    def _phase(self, name: str) -> str:
        found = re.fullmatch(self.pattern, name)
        stage = found.groupdict().get("stage") if found else None
        return stage or name.rpartition("/")[0]

    def _rank(self, phase: str) -> tuple[tuple[int, str], ...]:
        return ((self.phases.index(phase), ""),) if phase in self.phases else natural(phase)


BY_DIRECTORY = Naming()


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts `step-2` before `step-10`."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text))


def sampled(names: Sequence[str], policy: str, naming: Naming = BY_DIRECTORY) -> tuple[list[str], list[str]]:
    """The sampled names in the order of stage and step, and the names that say no step.

    Of names without a phase only the ones of the first stage are sampled. The policy is one of `POLICIES`, or log_tokens:K for K names
    spaced evenly in the logarithm of tokens (of steps, where a name says none).

    Raises:
        ModelError: The policy is unknown, no name says a step, or two names say the same one; or as `Naming.read`.
    """
    at = replace(naming, tokens_per_step=None).read(names)  # a step 0 is near to the others only in steps
    unread = [name for name in names if name not in at]
    if not at:
        raise ModelError(f"none of {len(names)} checkpoints says its step, as step1000 does; name each revision")
    first = min(found.stage for found in at.values())
    order = sorted((name for name in at if at[name].phase or at[name].stage == first), key=lambda name: at[name][:2])
    for a, b in pairwise(order):
        if at[a][:2] == at[b][:2]:
            raise ModelError(f"checkpoints {a} and {b} say the same step; name each revision")
    if spaced := re.fullmatch(rf"{LOG_TOKENS}([1-9]\d{{,5}})", policy):
        tokens = [found for name in order if (found := at[name].tokens) is not None]
        by_tokens = len(tokens) == len(order)  # else the two would mix
        amounts = np.log(np.maximum(1.0, tokens if by_tokens else [at[name].step for name in order]))
        wanted = np.linspace(amounts[0], amounts[-1], max(2, int(spaced[1])))
        kept = {int(np.abs(amounts - amount).argmin()) for amount in wanted} | {len(order) - 1}
        return [order[i] for i in sorted(kept)], unread
    if policy not in POLICIES:
        raise ModelError(f"sampling policy '{policy}': expected one of {', '.join(POLICIES)} or {LOG_TOKENS}K")
    strides = [next(stride for end, stride in POLICIES[policy] if end is None or i < end) for i in range(len(order))]
    return [name for i, name in enumerate(order) if i % strides[i] == 0 or i == len(order) - 1], unread


def without_step(path: str, revisions: Sequence[str], naming: Naming = BY_DIRECTORY) -> list[str]:
    """The names that say no step and that a sampling policy among the revisions leaves out for it; as `locate.checkpoints`."""
    root = Path(path).expanduser()
    policy = next((revision.removeprefix(SAMPLED) for revision in revisions if revision.startswith(SAMPLED)), None)
    if policy is None:
        return []
    if root.is_dir():
        return sampled(model_directories(root), policy, naming)[1]
    return sampled(hub_revisions(path), policy, replace(naming, pattern=HUB))[1]
