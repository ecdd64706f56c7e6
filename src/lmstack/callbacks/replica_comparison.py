"""What devices that hold the same weights must agree on, and which of them is the odd one where they do not."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Finding:
    """What one process computed.

    Attributes:
        host: Where it runs.
        checksums: Of every parameter.
        own_loss: Of its own micro-batch.
        previous_loss: Of the micro-batch of the process before it, the last one's for the first.
    """

    host: str
    checksums: list[int]
    own_loss: float
    previous_loss: float


@dataclass(frozen=True)
class Disagreement:
    """What processes do not agree on.

    Attributes:
        suspects: Ranks of which one or more computed or kept something wrong.
        what: For people.
    """

    suspects: list[int]
    what: str


def checksums(tensors: Iterable[Tensor]) -> list[int]:
    """The sum of each tensor's bits, read as integers, modulo 2^64: one flipped bit changes it, the order does not.

    Args:
        tensors: On any device.
    """
    sums = [tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    numbers: list[int] = torch.stack(sums).tolist()
    return numbers


def compare(findings: Sequence[Finding], names: Sequence[str], tolerance: float) -> Disagreement | None:
    """Where processes differ, weights before losses; None where they agree.

    Args:
        findings: Of all processes, by rank.
        names: Of the parameters, in the order of the checksums.
        tolerance: Relative difference of two losses that is let pass.
    """
    return _compare_weights(findings, names) or _compare_losses(findings, tolerance)


def _compare_weights(findings: Sequence[Finding], names: Sequence[str]) -> Disagreement | None:
    """The odd ones are those that are not like the majority; all of them, where there is none."""
    votes = Counter(tuple(finding.checksums) for finding in findings)
    if len(votes) == 1:
        return None
    (most, count), _ = votes.most_common(2)
    has_majority = 2 * count > len(findings)
    odd = [rank for rank, finding in enumerate(findings) if tuple(finding.checksums) != most]
    suspects = odd if has_majority else list(range(len(findings)))
    first = next(name for name, *values in zip(names, most, findings[odd[0]].checksums) if values[0] != values[1])
    others = "the other ranks" if has_majority else "each other"
    who = " and ".join(_named(findings, suspects))
    return Disagreement(suspects, f"the weights of {who} differ from {others}, first {first}")


def _compare_losses(findings: Sequence[Finding], tolerance: float) -> Disagreement | None:
    """Each loss was computed by its owner and by the next process; who had part in most differences is the odd one."""
    size = len(findings)
    pairs = [(rank, (rank + 1) % size) for rank in range(size)]
    values = [(findings[owner].own_loss, findings[checker].previous_loss) for owner, checker in pairs]
    wrong = [rank for rank in range(size) if not _is_close(*values[rank], tolerance)]
    if not wrong:
        return None
    parts = Counter(rank for owner in wrong for rank in set(pairs[owner]))
    suspects = sorted(rank for rank, count in parts.items() if count == max(parts.values()))
    owner, checker = pairs[wrong[0]]
    again = f"on rank {checker}" if size > 1 else "the second time"
    (own, other), who = values[owner], " or ".join(_named(findings, suspects))
    return Disagreement(
        suspects,
        f"the loss of a micro-batch is {own:.9g} on rank {owner} and {other:.9g} {again}: {who} computed wrongly",
    )


def _is_close(a: float, b: float, tolerance: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b or abs(a - b) <= tolerance * max(abs(a), abs(b))


def _named(findings: Sequence[Finding], ranks: Sequence[int]) -> list[str]:
    return [f"rank {rank} ({findings[rank].host})" for rank in ranks]
