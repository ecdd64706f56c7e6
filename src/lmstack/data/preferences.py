"""Answers and which of them is better: pairs, rankings, scores and single labels."""

import re
from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite
from typing import Any, NamedTuple, SupportsFloat

from lmstack.data.conversations import PROMPTS, Message, clean_messages, prompt_text, read_prompt
from lmstack.data.records import Record

_CHOSEN = ("chosen", "selected", "better")
_REJECTED = ("rejected", "worse")
_RANKED = ("answers", "responses", "completions")
_TURN = re.compile(r"(?:^|\n\n)(?:## )?(Human|Assistant):")


class Pair(NamedTuple):
    """Two answers to a prompt.

    Attributes:
        better: Number of the better one; of a tie, of the first.
        worse: Number of the other.
        margin: By how much it is better; 0 where that is not known.
        is_tie: Whether none is better.
    """

    better: int
    worse: int
    margin: float = 0.0
    is_tie: bool = False


@dataclass(frozen=True)
class PairConfig:
    """What becomes of a ranking's pairs.

    Attributes:
        keep_ties: Keep pairs of answers that are ranked alike; otherwise they are left out.
        margins_from_scores: A pair's margin is by how much its scores, or ranks, differ; otherwise it is the field
            `margin` of a pair.
    """

    keep_ties: bool = False
    margins_from_scores: bool = False


@dataclass(frozen=True)
class Answers:
    """A prompt's answers.

    Attributes:
        prompt: Messages before the answer.
        texts: The answers.
        ranks: Of each; smaller is better, equal is a tie.
        where: File and line.
        margin: By how much the first is better than the second, where the data says; 0 where not.
        labels: 1 wanted, -1 unwanted, 0 not known; for data that labels answers one by one.
        row: The whole record.
    """

    prompt: list[Message]
    texts: list[str]
    ranks: list[float]
    where: str
    margin: float = 0.0
    labels: list[int] = field(default_factory=list)
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt_text(self) -> str:
        """What identifies the prompt."""
        return prompt_text(self.prompt)

    def pairs(self, config: PairConfig = PairConfig()) -> list[Pair]:
        """Every two answers; those that are tied only where they are kept.

        Args:
            config: What becomes of ties, and what margins are.
        """
        result = []
        for i, j in combinations(range(len(self.texts)), 2):
            better, worse = (i, j) if self.ranks[i] <= self.ranks[j] else (j, i)
            difference = self.ranks[worse] - self.ranks[better]
            if difference or config.keep_ties:
                margin = difference if config.margins_from_scores else self.margin
                result.append(Pair(better, worse, margin if difference else 0.0, is_tie=difference == 0))
        return result

    def desirability(self) -> list[int]:
        """1, -1 or 0 for each answer: as labelled, or the best and the worst."""
        if self.labels or len(set(self.ranks)) < 2:
            return self.labels or [0] * len(self.texts)
        best, worst = min(self.ranks), max(self.ranks)
        return [(rank == best) - (rank == worst) for rank in self.ranks]


def read_answers(record: Record, *, may_tie: bool = False) -> Answers:
    """A record as a prompt and its answers.

    Known layouts: `chosen` and `rejected` (texts, messages, or transcripts of "Human:" and "Assistant:" turns); a list
    `answers` from best to worst, or with `scores` beside it, or of objects with `text` and `score` or `rank`; a list
    `output` from best to worst; two transcripts in `text` and their `score`; one `completion` with a `label`.

    Args:
        record: One row.
        may_tie: Whether all answers may be ranked alike.

    Raises:
        ValueError: It is none of these, ranks one answer, or holds an empty answer; file and line are named.
    """
    values = record.values
    chosen, rejected = _first(values, _CHOSEN), _first(values, _REJECTED)
    ranked = _first(values, _RANKED)
    if chosen is not None and rejected is not None:
        answers = _pair(record, values[chosen], values[rejected])
    elif _are_transcripts(values.get("text")) and "score" in values:
        answers = _scored_transcripts(record)
    elif ranked is not None and isinstance(values[ranked], list):
        answers = _ranking(record, values[ranked])
    elif isinstance(values.get("output"), list):
        answers = _ranking(record, values["output"])
    elif "label" in values:
        answers = _labelled(record)
    else:
        raise ValueError(
            f"{record.where}: fields {sorted(values)} are of no known layout: chosen and rejected; prompt and "
            "answers, best first; prompt, completion and label. Rename the fields."
        )
    _check(answers, may_tie)
    return answers


def _check(answers: Answers, may_tie: bool) -> None:
    if answers.prompt[-1]["role"] == "assistant":
        raise ValueError(f"{answers.where}: the prompt ends with the assistant, so there is nothing to answer.")
    for number, text in enumerate(answers.texts, start=1):
        if not text.strip():
            raise ValueError(f"{answers.where}: answer {number} is empty.")
    if answers.labels:
        return
    if len(answers.texts) < 2:
        raise ValueError(
            f"{answers.where}: a ranking of {len(answers.texts)} answer compares nothing. Give at least two."
        )
    by_text: dict[str, float] = {}
    for text, rank in zip(answers.texts, answers.ranks, strict=True):
        if by_text.setdefault(text.strip(), rank) != rank:
            raise ValueError(f"{answers.where}: the same answer is ranked above and below itself.")
    if not answers.pairs() and not may_tie:
        raise ValueError(f"{answers.where}: all answers are tied, so none is better.")


def _pair(record: Record, chosen: Any, rejected: Any) -> Answers:
    where, margin = record.where, _number(record.values.get("margin") or 0.0, "margin", record.where)
    if margin < 0.0:
        raise ValueError(f"{where}: margin={margin}: the chosen answer cannot be worse by it. Swap the answers.")
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt, texts = _last_turns([clean_messages(chosen, where), clean_messages(rejected, where)], where)
        return Answers(prompt or read_prompt(record), texts, [0.0, 1.0], where, margin, row=record.values)
    if _are_transcripts([chosen, rejected]) and _first(record.values, PROMPTS) is None:
        prompt, texts = _last_turns([_transcript(text, where) for text in (chosen, rejected)], where)
        return Answers(prompt, texts, [0.0, 1.0], where, margin, row=record.values)
    texts = [_answer_text(answer, where) for answer in (chosen, rejected)]
    return Answers(read_prompt(record), texts, [0.0, 1.0], where, margin, row=record.values)


def _scored_transcripts(record: Record) -> Answers:
    where, texts, scores = record.where, record.values["text"], record.values["score"]
    prompt, answers = _last_turns([_transcript(text, where) for text in texts], where)
    return Answers(prompt, answers, _ranks(scores, len(texts), "score", where), where, row=record.values)


def _ranking(record: Record, answers: list[Any]) -> Answers:
    where = record.where
    texts = [_answer_text(answer, where) for answer in answers]
    ranks = [float(number) for number in range(len(answers))]
    for name in ("rank", "score"):
        has = [isinstance(answer, dict) and name in answer for answer in answers]
        if any(has):
            if not all(has):
                raise ValueError(f"{where}: some answers have a {name} and some have none.")
            numbers = [_number(answer[name], name, where) for answer in answers]
            return Answers(
                read_prompt(record),
                texts,
                numbers if name == "rank" else [-n for n in numbers],
                where,
                row=record.values,
            )
    if record.values.get("scores") is not None:
        ranks = _ranks(record.values["scores"], len(texts), "scores", where)
    return Answers(read_prompt(record), texts, ranks, where, row=record.values)


def _ranks(scores: Any, count: int, name: str, where: str) -> list[float]:
    if not isinstance(scores, list) or len(scores) != count:
        raise ValueError(
            f"{where}: {name}={str(scores)[:60]} must be a list with a number for each of {count} answers."
        )
    return [-_number(score, name, where) for score in scores]


def _labelled(record: Record) -> Answers:
    text = record.values.get("completion", record.values.get("response"))
    label = record.values["label"]
    if label not in (0, 1):
        raise ValueError(f"{record.where}: label={label!r} must be true (wanted) or false (unwanted).")
    texts = [_answer_text(text, record.where)]
    return Answers(read_prompt(record), texts, [0.0], record.where, labels=[1 if label else -1], row=record.values)


def _answer_text(answer: Any, where: str) -> str:
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, dict):
        name = _first(answer, ("text", "content", "value", "answer", "response"))
        answer = None if name is None else answer[name]
    if not isinstance(answer, str):
        raise ValueError(f"{where}: an answer is {type(answer).__name__}, not text.")
    return answer


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, str) or not isinstance(value, SupportsFloat) or not isfinite(value):
        raise ValueError(f"{where}: {name}={value!r} is not a finite number.")
    return float(value)


def _are_transcripts(texts: Any) -> bool:
    return (
        isinstance(texts, list)
        and len(texts) == 2
        and all(isinstance(text, str) and len(_TURN.findall(text.strip())) >= 2 for text in texts)
    )


def _transcript(text: str, where: str) -> list[Message]:
    """The turns of a transcript; an empty one before the last was never said."""
    before, *parts = _TURN.split(text.strip())  # role, content, role, content ...
    if before:
        raise ValueError(f"{where}: the transcript begins with {before[:40]!r} and not with a turn.")
    messages = [
        {"role": "user" if role == "Human" else "assistant", "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    return [*filter(lambda message: message["content"], messages[:-1]), messages[-1]]


def _last_turns(conversations: list[list[Message]], where: str) -> tuple[list[Message], list[str]]:
    """What two conversations share, and the answer that ends each."""
    for messages in conversations:
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError(f"{where}: a conversation does not end with the assistant.")
    prompt, other = (messages[:-1] for messages in conversations)
    if prompt != other:
        raise ValueError(f"{where}: the conversations differ before their last turn: they answer different prompts.")
    return prompt, [messages[-1]["content"] for messages in conversations]


def _first(values: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if values.get(name) is not None), None)
