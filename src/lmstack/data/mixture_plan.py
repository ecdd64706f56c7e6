"""How much of which source a run trains on: shares by weight and size, caps on epochs, phases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from lmstack.data.batch_size import BatchSizePlan
from lmstack.data.mixture import Mixture, Phase
from lmstack.data.shares import SMALLEST_SHARE, cap_shares, source_weights
from lmstack.optim.durations import parse_duration


@dataclass(frozen=True)
class MixturePhase:
    """Other shares of the sources from some point of the run on, such as better text at the end.

    Attributes:
        start: Where it begins: `90%` of data.max_tokens, `50M tokens` or `2000 steps`.
        weights: As data.weights; null weighs all alike.
        temperature: As data.temperature. Without it and weights, shares go by size.
    """

    start: int | str
    weights: dict[str, float] | None = None
    temperature: float | None = None


class PlannedSource(NamedTuple):
    """What one phase takes from one source.

    Attributes:
        phase: Number of the phase, from 1.
        source: Name of the source.
        tokens: Tokens that are taken.
        share: Of the tokens of the phase.
        epochs: How often the source was gone through when the phase ends, earlier phases included.
        is_capped: Whether max_epochs lets it have less than its weight.
    """

    phase: int
    source: str
    tokens: int
    share: float
    epochs: float
    is_capped: bool


@dataclass(frozen=True)
class MixturePlan:
    """The sources of a run and the order in which their rows come.

    Attributes:
        names: Of the sources.
        mixture: The order of rows.
        asked: Weight of each source in each phase before caps; empty without weights.
    """

    names: tuple[str, ...]
    mixture: Mixture
    asked: tuple[tuple[float, ...], ...] = ()

    def table(self, num_rows: int) -> list[PlannedSource]:
        """What each phase takes from each source, in order.

        Args:
            num_rows: Rows of the run.
        """
        sizes = np.array(self.mixture.rows_per_epoch)
        phases = self.mixture.phases
        if not phases:  # every row once an epoch: shares are those of the sizes
            shares = sizes / sizes.sum()
            return self._lines(1, num_rows * shares, np.full(len(sizes), num_rows / sizes.sum()), shares)
        lines = []
        for number, (phase, later) in enumerate(zip_longest(phases, phases[1:]), 1):
            end = num_rows if later is None else min(later.first_row, num_rows)
            if phase.first_row < end:
                taken = self.mixture.rows_taken(phase.first_row, end)
                epochs = self.mixture.rows_taken(0, end) / sizes
                lines += self._lines(number, taken, epochs, np.array(phase.weights) / sum(phase.weights))
        return lines

    def _lines(self, phase: int, taken: np.ndarray, epochs: np.ndarray, shares: np.ndarray) -> list[PlannedSource]:
        asked = np.array(self.asked[phase - 1]) if self.asked else shares
        length = self.mixture.sequence_length
        return [
            PlannedSource(
                phase,
                name,
                tokens=round(taken[s] * length),
                share=float(taken[s] / taken.sum()),
                epochs=float(epochs[s]),
                is_capped=bool(shares[s] < asked[s] / asked.sum() - SMALLEST_SHARE),
            )
            for s, name in enumerate(self.names)
        ]


def plan_mixture(
    num_tokens: Mapping[str, int],
    sizes: BatchSizePlan,
    seed: int,
    *,
    weights: Mapping[str, float] | None = None,
    temperature: float | None = None,
    max_epochs: float | Mapping[str, float] | None = None,
    phases: Sequence[MixturePhase] = (),
) -> MixturePlan:
    """The mixture that some options describe.

    A phase takes from source s the share p(s) ∝ weight(s) · tokens(s)^(1/temperature). A source that reaches its cap
    gets what the cap leaves it, and the others share the rest in proportion; earlier phases are served first.

    Args:
        num_tokens: Tokens of each source.
        sizes: Rows of the run and of its steps.
        seed: Of the order.
        weights: By source; None weighs all alike.
        temperature: 1 is by size, larger is more even; None leaves the size out of it, or goes by size when there are
            no weights either. With neither of them, caps nor phases, every row of all sources comes once an epoch.
        max_epochs: How often a source may be gone through, for all or by source; None is no cap.
        phases: What comes after the first mixture.

    Raises:
        ValueError: A source is unknown or has no weight, a number is out of range, phases are out of order, a cap or
            a share of the run is given without max_tokens, or the caps leave too few tokens for the run.
    """
    names = tuple(num_tokens)
    tokens, length = tuple(num_tokens.values()), sizes.sequence_length
    if weights is None and temperature is None and max_epochs is None and not phases:
        return MixturePlan(names, Mixture(tokens, length, None, seed))
    first = MixturePhase(0, None if weights is None else dict(weights), temperature)
    recipes = [("data.", first), *((f"data.phases[{i}].", phase) for i, phase in enumerate(phases))]
    asked = tuple(source_weights(num_tokens, r.weights, r.temperature, where) for where, r in recipes)
    starts = [first_row(recipe.start, sizes, where) for where, recipe in recipes]
    shares = asked if max_epochs is None else _capped(num_tokens, asked, starts, sizes, max_epochs)
    first_weights, *later = shares
    later_phases = tuple(Phase(start, share) for start, share in zip(starts[1:], later, strict=True))
    return MixturePlan(names, Mixture(tokens, length, first_weights, seed, later_phases), asked)


def first_row(start: int | str, sizes: BatchSizePlan, where: str) -> int:
    """The place of the row with which a phase begins.

    Args:
        start: As `MixturePhase.start`.
        sizes: Rows of the run and of its steps.
        where: What the options begin with, for messages.

    Raises:
        ValueError: It is a share of a run without end, or is not before the end.
    """
    duration = parse_duration(start)
    if duration.unit == "steps":
        row = sizes.samples_at_step(int(duration.value))
    elif duration.unit == "tokens":
        row = -(-int(duration.value) // sizes.sequence_length)
    elif sizes.max_tokens is not None:
        row = round(duration.value * sizes.max_tokens / sizes.sequence_length)
    else:
        raise ValueError(
            f"{where}start={start} is a share of a run without max_tokens. Set data.max_tokens (and "
            "trainer.max_steps=null), or give tokens or steps."
        )
    if sizes.num_rows is not None and row >= sizes.num_rows:
        raise ValueError(f"{where}start={start} is not before the end of the run, {sizes.max_tokens:,} tokens.")
    return row


def _capped(
    num_tokens: Mapping[str, int],
    asked: Sequence[tuple[float, ...]],
    starts: Sequence[int],
    sizes: BatchSizePlan,
    max_epochs: float | Mapping[str, float],
) -> tuple[tuple[float, ...], ...]:
    """The shares of each phase when no source goes over its cap."""
    if sizes.num_rows is None:
        raise ValueError(
            "data.max_epochs caps shares of a run without max_tokens. Set data.max_tokens (and trainer.max_steps=null)."
        )
    caps = max_epochs if isinstance(max_epochs, Mapping) else dict.fromkeys(num_tokens, max_epochs)
    if unknown := sorted(set(caps) - set(num_tokens)):
        raise ValueError(f"data.max_epochs names {unknown[0]!r}, the corpus has {sorted(num_tokens)}.")
    if any(not cap > 0 for cap in caps.values()):
        raise ValueError(f"data.max_epochs={max_epochs}: must be above 0. A weight of 0 leaves a source out.")
    left = [caps.get(name, float("inf")) * (n // sizes.sequence_length) for name, n in num_tokens.items()]
    ends = [*starts[1:], sizes.num_rows]
    shares = []
    for number, (begin, end) in enumerate(zip(starts, ends, strict=True), 1):
        num_rows = max(1, min(end, sizes.num_rows) - begin)
        shares.append(cap_shares(asked[number - 1], left, num_rows, f"phase {number}", sizes.sequence_length))
        left = [limit - share * num_rows for limit, share in zip(left, shares[-1], strict=True)]
    return tuple(shares)
