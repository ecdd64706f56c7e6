"""Shares of sources: by weight and size, and under limits."""

from collections.abc import Mapping, Sequence

SMALLEST_SHARE = 2**-16
"""Less of a source cannot be mixed in."""


def source_weights(
    sizes: Mapping[str, int], weights: Mapping[str, float] | None, temperature: float | None, where: str = ""
) -> tuple[float, ...]:
    """Share of each source in any unit: its weight times size^(1/temperature) (arXiv:1907.05019, with weights).

    Args:
        sizes: Tokens or bytes of each source.
        weights: By source; None weighs all alike.
        temperature: 1 is by size, larger is more even; None leaves the size out of it, or goes by size when there are
            no weights either.
        where: What the options begin with, for messages.

    Raises:
        ValueError: A source is unknown or has no weight, or a number is out of range.
    """
    if weights is None:
        weights = dict.fromkeys(sizes, 1.0)
        temperature = 1.0 if temperature is None else temperature
    if set(weights) != set(sizes):
        raise ValueError(
            f"{where}weights names {sorted(weights)}, there are {sorted(sizes)}. "
            "Give every source a weight; 0 leaves one out."
        )
    if min(weights.values()) < 0 or not 0 < sum(weights.values()) < float("inf"):
        raise ValueError(f"{where}weights={weights}: must not be negative, infinite or all 0.")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"{where}temperature={temperature}: must be above 0. 1 is by size, larger is more even.")
    largest = max(sizes.values())
    by_size = {n: 1.0 if temperature is None else (n / largest) ** (1 / temperature) for n in sizes.values()}
    return tuple(float(weights[name]) * by_size[size] for name, size in sizes.items())


def cap_shares(
    shares: Sequence[float], limits: Sequence[float], num_rows: int, where: str, sequence_length: int = 1
) -> tuple[float, ...]:
    """Shares in which no source gives more rows than its limit; the others take over in proportion to their shares.

    Args:
        shares: What is asked for, in any unit.
        limits: Rows that each source can give.
        num_rows: Rows that are needed.
        where: What needs them, for messages.
        sequence_length: Tokens of a row, for messages.

    Returns:
        Shares that add up to 1.

    Raises:
        ValueError: The limits of all sources with a share are together below `num_rows`.
    """
    room = sum(limit for share, limit in zip(shares, limits, strict=True) if share > 0)
    if room < num_rows - 0.5:
        raise ValueError(
            f"data.max_epochs leaves {round(room * sequence_length):,} tokens for {where}, which takes "
            f"{num_rows * sequence_length:,}. Raise max_epochs, shorten the run, or add text."
        )
    fixed: dict[int, float] = {}
    while True:
        free = {s: share for s, share in enumerate(shares) if share > 0 and s not in fixed}
        scale = (1 - sum(fixed.values())) / (sum(free.values()) or 1)
        over = {s: limits[s] / num_rows for s, share in free.items() if share * scale * num_rows > limits[s]}
        if not over:
            break
        fixed |= {s: share if share >= SMALLEST_SHARE else 0.0 for s, share in over.items()}
    found = fixed | {s: share * scale for s, share in free.items()}
    return tuple(found.get(s, 0.0) for s in range(len(shares)))
