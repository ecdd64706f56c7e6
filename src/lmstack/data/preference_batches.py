"""Ranked answers in tokens, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmstack.data.batch import IGNORE_INDEX, PreferenceBatch
from lmstack.data.preferences import Answers, Pair, PairConfig
from lmstack.tokenization import ChatTemplate, Tokenizer


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

    Raises:
        ValueError: The template cannot render them, or a prompt with an answer does not begin with the prompt.
    """
    context = [message | {"train": False} for message in answers.prompt]
    prompt, rows = template.render_prompt(answers.prompt, tokenizer), []
    for text in answers.texts:
        rendered = template.render([*context, {"role": "assistant", "content": text, "train": True}], tokenizer)
        end = max(place for place, is_trained in enumerate(rendered.is_trained) if is_trained)
        rows.append(rendered.input_ids[: end + 1])
    if any(row[: len(prompt)] != prompt for row in rows):
        raise ValueError(
            f"{answers.where}: the chat template writes the prompt differently when an answer follows, so that answers "
            "would be scored after another prompt than they are sampled from. Mend the template's generation prompt."
        )
    return TokenizedAnswers(answers, rows, len(prompt), is_demonstration)


def collate_answers(items: Sequence[TokenizedAnswers], config: PairConfig = PairConfig()) -> PreferenceBatch:  # noqa: B008
    """All answers of some prompts as one batch; of no prompt, a row without tokens.

    Args:
        items: Prompts with their answers.
        config: What becomes of ties, and what margins are.
    """
    rows = [(row, item.prompt_length, group) for group, item in enumerate(items) for row in item.input_ids]
    width = max((len(row) for row, _, _ in rows), default=1)
    input_ids = torch.zeros(max(1, len(rows)), width, dtype=torch.int64)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for number, (row, prompt_length, _) in enumerate(rows):
        ids = torch.tensor(row)
        input_ids[number, : len(row)] = ids
        labels[number, prompt_length - 1 : len(row) - 1] = ids[prompt_length:]
    pairs: list[Pair] = []
    weights: list[float] = []
    first = 0
    for item in items:
        own = item.answers.pairs(config)
        pairs += [pair._replace(better=first + pair.better, worse=first + pair.worse) for pair in own]
        weights += [1.0 / len(own) for _ in own]
        first += len(item.input_ids)
    desirability = [value for item in items for value in item.answers.desirability()]
    return PreferenceBatch(
        input_ids=input_ids,
        labels=labels,
        lengths=torch.tensor([len(row) for row, _, _ in rows] or [0]),
        better=torch.tensor([pair.better for pair in pairs], dtype=torch.int64),
        worse=torch.tensor([pair.worse for pair in pairs], dtype=torch.int64),
        pair_weight=torch.tensor(weights, dtype=torch.float32),
        margin=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
        is_tie=torch.tensor([pair.is_tie for pair in pairs], dtype=torch.bool),
        group=torch.tensor([group for _, _, group in rows] or [0]),
        desirability=torch.tensor(desirability or [0], dtype=torch.float32),
        demonstration=torch.tensor([item.is_demonstration for item in items for _ in item.input_ids] or [False]),
    )
