"""Answers and which of them is better: pairs, rankings, scores and single labels, to batches."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch

from lmstack.data.batch import IGNORE_INDEX, PreferenceBatch
from lmstack.data.conversations import Message, clean_messages
from lmstack.data.records import Record
from lmstack.tokenization import ChatTemplate, Tokenizer

_PROMPTS = ("prompt", "question", "instruction", "query")
_CHOSEN = ("chosen", "selected", "better")
_REJECTED = ("rejected", "worse")
_RANKED = ("answers", "responses", "completions")
_TURN = re.compile(r"(?:^|\n\n)(?:## )?(Human|Assistant):[ \n]?")


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
        return "\n".join(f"{message['role']}: {message['content'].strip()}" for message in self.prompt)

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) of every two answers that are not tied."""
        ordered = [
            (i, j) if self.ranks[i] < self.ranks[j] else (j, i) for i, j in combinations(range(len(self.texts)), 2)
        ]
        return [(i, j) for i, j in ordered if self.ranks[i] != self.ranks[j]]

    def desirability(self) -> list[int]:
        """1, -1 or 0 for each answer: as labelled, or the best and the worst."""
        if self.labels or len(set(self.ranks)) < 2:
            return self.labels or [0] * len(self.texts)
        best, worst = min(self.ranks), max(self.ranks)
        return [(rank == best) - (rank == worst) for rank in self.ranks]


def read_answers(record: Record) -> Answers:
    """A record as a prompt and its answers.

    Known layouts: `chosen` and `rejected` (texts, messages, or transcripts of "Human:" and "Assistant:" turns),
    `answers` from best to worst (texts, or objects with `text` and `score` or `rank`), a list `output` from best to
    worst, and one `completion` with a `label`.

    Args:
        record: One row.

    Raises:
        ValueError: It is none of these, ranks one answer, or holds an empty answer; file and line are named.
    """
    values = record.values
    chosen, rejected = _first(values, _CHOSEN), _first(values, _REJECTED)
    ranked = _first(values, _RANKED)
    if chosen is not None and rejected is not None:
        answers = _pair(record, values[chosen], values[rejected])
    elif _is_transcript_pair(values.get("text")):
        answers = _pair(record, *values["text"])
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
    _check(answers)
    return answers


def _check(answers: Answers) -> None:
    if not answers.labels and len(answers.texts) < 2:
        raise ValueError(
            f"{answers.where}: a ranking of {len(answers.texts)} answer compares nothing. Give at least two."
        )
    for number, text in enumerate(answers.texts, start=1):
        if not text.strip():
            raise ValueError(f"{answers.where}: answer {number} is empty.")
    if not answers.labels and not answers.pairs():
        raise ValueError(f"{answers.where}: all answers are tied, so none is better.")
    by_text: dict[str, float] = {}
    for text, rank in zip(answers.texts, answers.ranks, strict=True):
        if by_text.setdefault(text, rank) != rank:
            raise ValueError(f"{answers.where}: the answer {text[:60]!r} is ranked above and below itself.")


def _pair(record: Record, chosen: Any, rejected: Any) -> Answers:
    margin = float(record.values.get("margin") or 0.0)
    if _is_transcript_pair([chosen, rejected]):
        prompt, best = _transcript(chosen, record.where)
        other_prompt, worst = _transcript(rejected, record.where)
        if prompt != other_prompt:
            raise ValueError(f"{record.where}: the two transcripts differ before their last turn, so they answer "
                             "different prompts.")  # fmt: skip
        return Answers(prompt, [best, worst], [0.0, 1.0], record.where, margin, row=record.values)
    if isinstance(chosen, list) and isinstance(rejected, list):
        left, right = clean_messages(chosen, record.where), clean_messages(rejected, record.where)
        prompt = left[:-1] or _prompt(record)
        return Answers(
            prompt, [left[-1]["content"], right[-1]["content"]], [0.0, 1.0], record.where, margin, row=record.values
        )
    texts = [_answer_text(answer, record.where) for answer in (chosen, rejected)]
    return Answers(_prompt(record), texts, [0.0, 1.0], record.where, margin, row=record.values)


def _ranking(record: Record, answers: list[Any]) -> Answers:
    texts = [_answer_text(answer, record.where) for answer in answers]
    ranks = [float(number) for number in range(len(answers))]
    if answers and all(isinstance(answer, dict) and "rank" in answer for answer in answers):
        ranks = [float(answer["rank"]) for answer in answers]
    elif answers and all(isinstance(answer, dict) and "score" in answer for answer in answers):
        ranks = [-float(answer["score"]) for answer in answers]
    elif isinstance(record.values.get("scores"), list):
        ranks = [-float(score) for score in record.values["scores"]]
    if len(ranks) != len(texts):
        raise ValueError(f"{record.where}: {len(texts)} answers but {len(ranks)} scores.")
    return Answers(_prompt(record), texts, ranks, record.where, row=record.values)


def _labelled(record: Record) -> Answers:
    text = record.values.get("completion", record.values.get("response"))
    label = record.values["label"]
    if not isinstance(label, bool) and label not in (0, 1):
        raise ValueError(f"{record.where}: label={label!r} must be true (wanted) or false (unwanted).")
    return Answers(
        _prompt(record), [_answer_text(text, record.where)], [0.0], record.where, labels=[1 if label else -1],
        row=record.values,
    )  # fmt: skip


def _prompt(record: Record) -> list[Message]:
    values = record.values
    for name in ("messages", "conversations"):
        if isinstance(values.get(name), list):
            keys = {"role_key": "from", "content_key": "value"} if name == "conversations" else {}
            return clean_messages(values[name], record.where, **keys)
    found = _first(values, _PROMPTS)
    if found is None:
        raise ValueError(f"{record.where}: no prompt. Give one of {', '.join(_PROMPTS)}, or messages.")
    if isinstance(values[found], list):
        return clean_messages(values[found], record.where)
    extra = str(values.get("input") or "")
    return [{"role": "user", "content": f"{values[found]}\n\n{extra}" if extra.strip() else str(values[found])}]


def _answer_text(answer: Any, where: str) -> str:
    if isinstance(answer, dict):
        name = _first(answer, ("text", "content", "value", "answer", "response"))
        answer = None if name is None else answer[name]
    if not isinstance(answer, str):
        raise ValueError(f"{where}: an answer is {type(answer).__name__}, not text.")
    return answer


def _is_transcript_pair(texts: Any) -> bool:
    return (
        isinstance(texts, list)
        and len(texts) == 2
        and all(isinstance(text, str) and len(_TURN.findall(text)) >= 2 for text in texts)
    )


def _transcript(text: str, where: str) -> tuple[list[Message], str]:
    parts = _TURN.split(text)[1:]  # role, content, role, content ...
    roles = ["user" if role == "Human" else "assistant" for role in parts[::2]]
    messages: list[Message] = [
        {"role": role, "content": content.strip()} for role, content in zip(roles, parts[1::2], strict=True)
    ]
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{where}: the transcript does not end with the assistant.")
    return [message for message in messages[:-1] if message["content"]], messages[-1]["content"]


def _first(values: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in values), None)


@dataclass(frozen=True)
class TokenizedAnswers:
    """A prompt's answers in tokens, each with the prompt before it and its end after it.

    Attributes:
        answers: The same as text.
        input_ids: Prompt and answer, for each answer.
        prompt_length: Tokens of the prompt.
        is_demonstration: Whether it is a reference demonstration.
    """

    answers: Answers
    input_ids: list[list[int]]
    prompt_length: int
    is_demonstration: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(map(len, self.input_ids))


def tokenize_answers(
    answers: Answers, template: ChatTemplate, tokenizer: Tokenizer, *, is_demonstration: bool = False
) -> TokenizedAnswers:
    """Answers in tokens; a row ends with the token that ends the answer, as a sampled response does.

    Args:
        answers: As text.
        template: Renders them.
        tokenizer: Encodes them.
        is_demonstration: Whether it is a reference demonstration.
    """
    prompt = template.render_prompt(answers.prompt, tokenizer)
    context = [message | {"train": False} for message in answers.prompt]
    rows = []
    for text in answers.texts:
        rendered = template.render([*context, {"role": "assistant", "content": text}], tokenizer)
        end = max(place for place, is_trained in enumerate(rendered.is_trained) if is_trained)
        rows.append(rendered.input_ids[: end + 1])
    return TokenizedAnswers(answers, rows, len(prompt), is_demonstration)


def collate_answers(items: Sequence[TokenizedAnswers]) -> PreferenceBatch:
    """All answers of some prompts as one batch; of no prompt, a row without tokens.

    Args:
        items: Prompts with their answers.
    """
    rows = [(row, item.prompt_length, group) for group, item in enumerate(items) for row in item.input_ids]
    width = max((len(row) for row, _, _ in rows), default=1)
    input_ids = torch.zeros(max(1, len(rows)), width, dtype=torch.int64)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for number, (row, prompt_length, _) in enumerate(rows):
        ids = torch.tensor(row)
        input_ids[number, : len(row)] = ids
        labels[number, prompt_length - 1 : len(row) - 1] = ids[prompt_length:]
    better, worse, weights, margins, first = [], [], [], [], 0
    for item in items:
        pairs = item.answers.pairs()
        better += [first + i for i, _ in pairs]
        worse += [first + j for _, j in pairs]
        weights += [1.0 / len(pairs)] * len(pairs)
        margins += [item.answers.margin] * len(pairs)
        first += len(item.input_ids)
    desirability = [value for item in items for value in item.answers.desirability()]
    return PreferenceBatch(
        input_ids=input_ids,
        labels=labels,
        lengths=torch.tensor([len(row) for row, _, _ in rows] or [0]),
        better=torch.tensor(better, dtype=torch.int64),
        worse=torch.tensor(worse, dtype=torch.int64),
        pair_weight=torch.tensor(weights, dtype=torch.float32),
        margin=torch.tensor(margins, dtype=torch.float32),
        group=torch.tensor([group for _, _, group in rows] or [0]),
        desirability=torch.tensor(desirability or [0], dtype=torch.float32),
        demonstration=torch.tensor([item.is_demonstration for item in items for _ in item.input_ids] or [False]),
    )
