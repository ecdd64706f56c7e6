"""What a response is worth: a weighted sum of reward functions, each logged by its name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lmstack.generation.request import StopReason


@dataclass(frozen=True)
class Sample:
    """A prompt and the response to it, as reward functions see them.

    Attributes:
        prompt: Text of the rendered prompt, without special tokens.
        response: Text of the response, without the token that ended it.
        prompt_ids: Token ids of the prompt.
        response_ids: Token ids of the response, the one that ended it included.
        stop_reason: Why the response ended; `stop_id` is an ending of its own accord.
        row: The prompt's source record.
    """

    prompt: str
    response: str
    prompt_ids: list[int]
    response_ids: list[int]
    stop_reason: StopReason
    row: dict[str, Any] = field(default_factory=dict)


_RESERVED = {"total", "shaped", "std", "square"}  # logged beside the functions, as `reward/<name>`

RewardFunction = Callable[[Sequence[Sample]], Sequence[float]]
"""Samples in, one finite number for each out."""


class RewardError(ValueError):
    """A reward function failed, or answered something that is not a reward."""


class WeightedRewards:
    """Several reward functions as one.

    Args:
        functions: By name.
        weights: By the same names.
    """

    def __init__(self, functions: Mapping[str, RewardFunction], weights: Mapping[str, float]) -> None:
        if not functions:
            raise ValueError("model.rewards is empty: nothing to learn from. Name at least one reward function.")
        for name in sorted(_RESERVED & functions.keys()):
            raise ValueError(f"model.rewards.{name}: 'reward/{name}' is logged already. Choose another name.")
        self.functions = dict(functions)
        self.weights = {name: weights[name] for name in functions}

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Float[Tensor, " B"]]:
        """The value of every function for every sample, unweighted.

        Args:
            samples: Of one rank.

        Raises:
            RewardError: A function raised, or did not give one finite number for each sample; the message names the
                function and the sample.
        """
        return {name: self._call(name, function, samples) for name, function in self.functions.items()}

    def total(self, terms: Mapping[str, Float[Tensor, " B"]]) -> Float[Tensor, " B"]:
        """The weighted sum.

        Args:
            terms: What a call gave.
        """
        return torch.stack([self.weights[name] * values for name, values in terms.items()]).sum(0)

    def _call(self, name: str, function: RewardFunction, samples: Sequence[Sample]) -> Tensor:
        try:
            values = [float(value) for value in function(samples)]
        except RewardError:
            raise
        except Exception as error:
            culprit = _first_that_fails(function, samples)
            raise RewardError(
                f"The reward function {name!r} raised {type(error).__name__}: {error}{culprit}. Nothing was trained on "
                "this rollout; mend the function and resume with ckpt_path=last."
            ) from error
        if len(values) != len(samples):
            raise RewardError(
                f"The reward function {name!r} gave {len(values)} values for {len(samples)} samples. "
                "It must give one for each, in order."
            )
        for sample, value in zip(samples, values, strict=True):
            if not isfinite(value):
                raise RewardError(
                    f"The reward function {name!r} gave {value}{_describe(sample)}. Rewards must be finite numbers: "
                    "mend the function and resume with ckpt_path=last."
                )
        return torch.tensor(values, dtype=torch.float32)


def _first_that_fails(function: RewardFunction, samples: Sequence[Sample]) -> str:
    for sample in samples:
        try:
            function([sample])
        except Exception:
            return _describe(sample)
    return ""


def _describe(sample: Sample) -> str:
    where = sample.row.get("source_line")
    origin = f" ({where})" if where else ""
    return f" on the response {sample.response[:60]!r} to the prompt {sample.prompt[-60:]!r}{origin}"
