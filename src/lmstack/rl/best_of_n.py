"""Rejection sampling: of several responses to a prompt, the best become demonstrations."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmstack.rl.rewards import Sample


@dataclass(frozen=True)
class BestOfN:
    """Which of a prompt's responses are kept (Touvron et al. 2023, arXiv:2307.09288, section 3.2.3).

    An empty response is never kept, and one that occurs twice is kept once.

    Attributes:
        num_samples: Responses to each prompt.
        keep: At most so many of them, those of the highest reward.
        min_reward: Keep none below this; None keeps the best, however bad.
        finished_only: Keep none that was cut at the longest length: it would teach never to end.
    """

    num_samples: int = 8
    keep: int = 1
    min_reward: float | None = None
    finished_only: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples}: must be at least 1.")
        if not 1 <= self.keep <= self.num_samples:
            raise ValueError(f"keep={self.keep}: must be from 1 to num_samples={self.num_samples}.")

    def pick(self, samples: Sequence[Sample], rewards: Sequence[float]) -> list[int]:
        """Numbers of the responses to keep, best first; of equal rewards, the one sampled first.

        Args:
            samples: Responses to one prompt.
            rewards: One for each.
        """
        kept: dict[str, int] = {}
        for i in sorted(range(len(samples)), key=lambda i: -rewards[i]):
            text = samples[i].response
            is_complete = samples[i].stop_reason == "stop_id" or not self.finished_only
            is_good = self.min_reward is None or rewards[i] >= self.min_reward
            if text.strip() and is_complete and is_good:
                kept.setdefault(text, i)
        return list(kept.values())[: self.keep]
