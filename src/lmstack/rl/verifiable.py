"""Rewards that can be checked: answers, patterns, lengths, a function of your own. Each is 0 or 1 unless it says."""

import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from lmstack.rl.rewards import RewardFunction, Sample

# A sign does not stand behind a word or number ("3-4"), commas stand before three digits each ("1,234", not "12,13").
_NUMBER = re.compile(r"(?:(?<!\w)[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class ExactAnswer:
    """1 where the response is the answer of the prompt's record, white space and case aside.

    Attributes:
        field: Name of the answer in the record.
        weight: Factor on this reward.
    """

    field: str = "answer"
    weight: float = 1.0
    kind: Literal["exact_answer"] = "exact_answer"

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score samples.

        Args:
            samples: Whose records hold `field`.
        """
        return [float(_plain(s.response) == _plain(str(_reference(s, self.field)))) for s in samples]


@dataclass(frozen=True)
class NumericAnswer:
    """1 where the last number of the response equals that of the record's answer.

    In the manner of GSM8K (Cobbe et al. 2021, arXiv:2110.14168): what follows `####` counts where it occurs, otherwise
    the last number; thousands separators do not matter, and 2.50 equals 2.5.

    Attributes:
        field: Name of the answer in the record.
        weight: Factor on this reward.
    """

    field: str = "answer"
    weight: float = 1.0
    kind: Literal["numeric_answer"] = "numeric_answer"

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score samples.

        Args:
            samples: Whose records hold `field`.

        Raises:
            ValueError: A record's answer holds no number.
        """
        scores = []
        for sample in samples:
            wanted = _last_number(str(_reference(sample, self.field)))
            if wanted is None:
                raise ValueError(f"the record's {self.field!r} holds no number: {sample.row[self.field]!r}")
            scores.append(float(_last_number(sample.response) == wanted))
        return scores


@dataclass(frozen=True)
class RegexReward:
    """1 where a regular expression matches the response.

    Attributes:
        pattern: In Python's syntax; `.` matches line breaks too.
        match: `search` finds it anywhere; `full` wants the whole response, for formats such as
            `<think>.*</think><answer>.*</answer>`.
        weight: Factor on this reward.
    """

    pattern: str
    match: Literal["search", "full"] = "search"
    weight: float = 1.0
    kind: Literal["regex"] = "regex"

    def __post_init__(self) -> None:
        """Check the pattern."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"rewards.pattern={self.pattern!r} is not a regular expression: {error}.") from error

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score samples.

        Args:
            samples: Any.
        """
        pattern = re.compile(self.pattern, re.DOTALL)
        match = pattern.search if self.match == "search" else pattern.fullmatch
        return [float(match(sample.response) is not None) for sample in samples]


@dataclass(frozen=True)
class LengthReward:
    """From 0 at the target length down to -1 at `tolerance` tokens away from it and beyond.

    Attributes:
        target: Tokens of a response, its end included.
        tolerance: Tokens off target at which -1 is reached.
        weight: Factor on this reward.
    """

    target: int
    tolerance: int
    weight: float = 1.0
    kind: Literal["length"] = "length"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.tolerance < 1:
            raise ValueError(f"rewards.tolerance={self.tolerance}: must be at least 1 token.")

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score samples.

        Args:
            samples: Any.
        """
        return [max(-1.0, -abs(len(s.response_ids) - self.target) / self.tolerance) for s in samples]


@dataclass(frozen=True)
class FunctionReward:
    """Any function of yours: a list of `lmstack.rl.rewards.Sample` in, one number for each out.

    Attributes:
        path: `package.module.function`, or `folder/file.py:function`.
        weight: Factor on this reward.
    """

    path: str
    weight: float = 1.0
    kind: Literal["function"] = "function"

    def load(self) -> RewardFunction:
        """Import the function.

        Raises:
            ValueError: There is no such function.
        """
        where, _, name = self.path.rpartition(":" if ".py:" in self.path else ".")
        try:
            module = _module_in_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
            function: Any = getattr(module, name)
        except (ImportError, AttributeError, ValueError, OSError) as error:
            raise ValueError(
                f"rewards.path={self.path!r}: cannot import it ({error}). Give package.module.function, or "
                "folder/file.py:function."
            ) from error
        if not callable(function):
            raise ValueError(f"rewards.path={self.path!r} is a {type(function).__name__}, not a function.")
        loaded: RewardFunction = function
        return loaded


def _module_in_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None  # the file's name ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _reference(sample: Sample, field: str) -> Any:
    if field not in sample.row:
        raise ValueError(f"the prompt's record has no {field!r}, only {sorted(sample.row)}")
    return sample.row[field]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text.rpartition("####")[2])
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None
