"""Ranked answers, for reward models and preference losses."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from lmstack.data.batch import PreferenceBatch
from lmstack.data.chat_data import OnBadRow, leave_out, read_rows, refuse_overlap, split_by_prompt
from lmstack.data.conversations import detect_schema, read_conversation
from lmstack.data.item_loader import Share
from lmstack.data.modules.items import ItemData
from lmstack.data.preference_batches import TokenizedAnswers, collate_answers, tokenize_answers
from lmstack.data.preferences import Answers, PairConfig, read_answers
from lmstack.data.rank import Rank
from lmstack.data.records import Record


class PreferenceData(ItemData):
    """Prompts with two or more answers and their order; all answers to a prompt are in one micro-batch.

    Args:
        path: JSONL, JSON or Parquet files, folders or globs. Layouts: chosen and rejected; prompt and answers, best
            first or with scores or ranks; prompt, completion and label.
        tokenizer: A tokenizer.json, its folder, or the folder of a run whose tokenizer is taken.
        sequence_length: Most tokens of a prompt with an answer.
        micro_batch_size: Prompts of a forward pass on one device.
        global_batch_size: Prompts of an optimizer step, over all ranks.
        chat_template: `chatml`, `llama3`, `plain`, or a file with a Jinja template; null takes the tokenizer's own.
        add_special_tokens: Give the tokenizer the special tokens that the template needs.
        too_long: Whether a prompt with an answer that does not fit stops the run or is left out and counted.
        on_bad_row: Whether a row that cannot be used stops the run or is left out and counted.
        keep_ties: Keep pairs of answers that are ranked alike, for `model.tie_threshold`; otherwise they are left out.
        margins_from_scores: Take as a pair's margin by how much its scores, or ranks, differ; otherwise it is the field
            `margin` beside chosen and rejected.
        demonstrations: Conversations whose answers a reward model is to score 0 on average; null for none.
        validation_path: Files to validate on; null holds out some of `path`.
        validation_fraction: Share of the prompts that is held out, by the hash of their text.
        num_epochs: Passes over the prompts; null goes on until the trainer stops.
        seed: Another seed is another order.
    """

    def __init__(
        self,
        path: str | list[str],
        tokenizer: str,
        sequence_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        *,
        chat_template: str | None = None,
        add_special_tokens: bool = False,
        too_long: OnBadRow = "drop",
        on_bad_row: OnBadRow = "error",
        keep_ties: bool = False,
        margins_from_scores: bool = False,
        demonstrations: str | list[str] | None = None,
        validation_path: str | list[str] | None = None,
        validation_fraction: float = 0.1,
        num_epochs: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer,
            chat_template,
            add_special_tokens=add_special_tokens,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            num_epochs=num_epochs,
            seed=seed,
        )
        self.path = path
        self.sequence_length = sequence_length
        self.too_long = too_long
        self.on_bad_row = on_bad_row
        self.pair_config = PairConfig(keep_ties, margins_from_scores)
        self.demonstrations = demonstrations
        self.validation_path = validation_path
        self.validation_fraction = validation_fraction
        self._items: list[TokenizedAnswers] = []
        self._held_out: list[TokenizedAnswers] = []

    def demonstration_batches(self) -> Iterator[PreferenceBatch]:
        """This rank's share of the reference demonstrations, a row each; nothing when there are none."""
        if self.demonstrations is None:
            return
        answers = read_rows(self.demonstrations, _read_demonstration, self.on_bad_row, self.counts)
        rank = Rank.of(self.trainer)
        items = self._tokenize([answers[i] for i in rank.share(len(answers))], is_demonstration=True)
        size = self.micro_batch_size * 4
        for begin in range(0, len(items), size):
            yield collate_answers(items[begin : begin + size])

    def annotator_votes(self) -> list[list[int]]:
        """Held-out comparisons on which several annotators voted: 1 for the first answer, 0 for the second.

        Rows that carry a list `votes` have them; no other layout does.
        """
        rows = (item.answers.row.get("votes") for item in self._held_out)
        return [[int(vote) for vote in votes] for votes in rows if isinstance(votes, list) and len(votes) > 1]

    def _load(self) -> None:
        read = partial(read_answers, may_tie=self.pair_config.keep_ties)
        answers = read_rows(self.path, read, self.on_bad_row, self.counts)
        _refuse_mixture(answers)
        if self.validation_path is None:
            train, held_out = split_by_prompt(answers, lambda a: a.prompt_text, self.validation_fraction)
        else:
            train = answers
            held_out = read_rows(self.validation_path, read, self.on_bad_row, self.counts)
            _refuse_mixture([*answers, *held_out])
            refuse_overlap((a.prompt_text for a in train), (a.prompt_text for a in held_out))
        self._items, self._held_out = self._tokenize(train), self._tokenize(held_out)
        if not self._items:
            raise ValueError(
                f"{self.path}: no prompt is left to train on; sequence_length={self.sequence_length} is too short for "
                "all."
            )
        pairs = sum(len(item.answers.pairs(self.pair_config)) for item in self._items)
        self.tell(
            f"{len(self._items):,} prompts with {sum(len(i.input_ids) for i in self._items):,} answers, "
            f"{pairs:,} pairs; {len(self._held_out):,} prompts held out"
        )

    def _tokenize(self, answers: Sequence[Answers], *, is_demonstration: bool = False) -> list[TokenizedAnswers]:
        kept = []
        for one in answers:
            try:
                item = tokenize_answers(one, self.chat_template, self.tokenizer, is_demonstration=is_demonstration)
            except ValueError as error:
                leave_out(error, one.where, self.on_bad_row, self.counts)
                continue
            if item.longest <= self.sequence_length:
                kept.append(item)
            elif self.too_long == "error":
                raise ValueError(
                    f"{one.where}: {item.longest} tokens do not fit in sequence_length={self.sequence_length}. "
                    "Raise it, or set data.too_long=drop."
                )
            else:
                self.counts[f"longer than sequence_length={self.sequence_length}"] += 1
        return kept

    def _item_tokens(self) -> list[int]:
        return [sum(map(len, item.input_ids)) for item in self._items]

    def _num_held_out(self) -> int:
        return len(self._held_out)

    def _step(self, share: Share) -> list[PreferenceBatch]:
        ordered = sorted((self._items[i] for i in share.items), key=lambda item: item.longest)  # like lengths together
        size = self.micro_batch_size
        return [collate_answers(ordered[i : i + size], self.pair_config) for i in range(0, share.largest, size)]

    def _held_out_batch(self, items: Sequence[int]) -> PreferenceBatch:
        return collate_answers([self._held_out[i] for i in items], self.pair_config)

    def _item_origins(self, item: int) -> list[str]:
        return [self._items[item].answers.where]

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for item in self._items:
            for row, rank in zip(item.input_ids, item.answers.ranks, strict=True):
                digest.update(np.array([*row, -1]).tobytes() + str(rank).encode())
        return digest.hexdigest()


def _read_demonstration(record: Record) -> Answers:
    messages = read_conversation(record, detect_schema(record)).messages
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{record.where}: a demonstration must end with the assistant.")
    return Answers(messages[:-1], [messages[-1]["content"]], [0.0], record.where)


def _refuse_mixture(answers: Sequence[Answers]) -> None:
    """A batch counts either prompts with pairs or single labels, so the data must have one sort."""
    kinds = {bool(one.labels): one.where for one in answers}
    if len(kinds) > 1:
        raise ValueError(
            f"{kinds[True]} labels a single answer, {kinds[False]} compares several. "
            "Train on one sort: name its files only."
        )
