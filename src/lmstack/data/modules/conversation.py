"""Conversations in packed rows, for supervised fine-tuning."""

import hashlib
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np

from lmstack.data.batch import TokenBatch
from lmstack.data.chat_data import OnBadRow, leave_out, read_rows, refuse_overlap, split_by_prompt
from lmstack.data.conversations import Conversation, Schema, detect_schema, read_conversation
from lmstack.data.item_loader import Share
from lmstack.data.modules.items import ItemData
from lmstack.data.records import Record
from lmstack.data.sequences import TokenSequence, Truncation, best_fit, collate_rows, truncate
from lmstack.tokenization.chat_template import ROLES, encode_pieces

_NO_TARGETS = "nothing to learn in it, or nothing left after it was cut"


class ConversationData(ItemData):
    """Conversations, tokenized with a mask of what is to be learnt, packed into rows without being cut.

    Args:
        path: JSONL, JSON or Parquet files, folders or globs: messages, ShareGPT, Alpaca, or prompt and completion.
        tokenizer: A tokenizer.json, its folder, or the folder of a run whose tokenizer is taken.
        sequence_length: Tokens of a row.
        micro_batch_size: Rows of a forward pass on one device.
        global_batch_size: Rows of an optimizer step, over all ranks.
        chat_template: `chatml`, `llama3`, `plain`, or a file with a Jinja template; null takes the tokenizer's own.
        add_special_tokens: Give the tokenizer the special tokens that the template needs.
        schema: Layout of the rows; null looks at the first row of each file whose layout is known.
        train_on: Roles whose messages are learnt; a message's own `train` or `weight` goes first.
        packing: Several conversations share a row, each seeing itself only. Otherwise each has a row of its own, and
            rows of like length come together.
        truncation: What happens to a conversation that is longer than a row.
        on_bad_row: Whether a row that cannot be used stops the run or is left out and counted.
        validation_path: Files to validate on; null holds out some of `path`.
        validation_fraction: Share of the prompts that is held out, by the hash of their text.
        num_epochs: Passes over the rows; null goes on until the trainer stops.
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
        schema: Schema | None = None,
        train_on: list[str] | None = None,
        packing: bool = True,
        truncation: Truncation = "drop",
        on_bad_row: OnBadRow = "error",
        validation_path: str | list[str] | None = None,
        validation_fraction: float = 0.05,
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
        self.schema = schema
        self.train_on = tuple(["assistant"] if train_on is None else train_on)
        if unknown := [role for role in self.train_on if role not in ROLES]:
            raise ValueError(f"data.train_on names {unknown[0]!r}. The roles are {', '.join(ROLES)}.")
        self.packing = packing
        self.truncation = truncation
        self.on_bad_row = on_bad_row
        self.validation_path = validation_path
        self.validation_fraction = validation_fraction
        self._pointless: TokenSequence | None = None
        self._rows: list[list[TokenSequence]] = []
        self._held_out: list[list[TokenSequence]] = []

    def _load(self) -> None:
        conversations = self._read(self.path)
        if self.validation_path is None:
            train, held_out = split_by_prompt(conversations, lambda c: c.prompt_text, self.validation_fraction)
        else:
            train, held_out = conversations, self._read(self.validation_path)
            refuse_overlap((c.prompt_text for c in train), (c.prompt_text for c in held_out))
        sequences = self._tokenize(train)
        self._refuse_pointless_masks(sequences)
        self._rows = self._in_rows(sequences)
        self._held_out = self._in_rows(self._tokenize(held_out))
        targets, tokens = sum(s.num_targets for s in sequences), sum(len(s.input_ids) for s in sequences)
        self.tell(
            f"{len(sequences):,} conversations in {len(self._rows):,} rows of {self.sequence_length} tokens "
            f"({tokens / max(1, len(self._rows) * self.sequence_length):.0%} full), {targets:,} of {tokens:,} tokens "
            f"to learn; {len(held_out):,} held out"
        )

    def _read(self, path: str | list[str]) -> list[Conversation]:
        schemas: dict[str, Schema] = {}

        def read(record: Record) -> Conversation:
            file = record.where.rpartition(", ")[0]
            if file not in schemas:
                schemas[file] = self.schema or detect_schema(record)
                self.tell(f"{file}: layout {schemas[file]}")
            return read_conversation(record, schemas[file])

        return read_rows(path, read, self.on_bad_row, self.counts)

    def _tokenize(self, conversations: Sequence[Conversation]) -> list[TokenSequence]:
        pieces, places = [], []
        for conversation in conversations:
            try:
                pieces.append(self.chat_template.pieces(conversation.messages, self.tokenizer, self.train_on))
                places.append(conversation.where)
            except ValueError as error:
                leave_out(error, conversation.where, self.on_bad_row, self.counts)
        sequences = []
        for where, rendered in zip(places, encode_pieces(pieces, self.tokenizer), strict=True):
            whole = TokenSequence(rendered.input_ids, rendered.is_trained, where)
            kept = truncate(whole, self.sequence_length, self.truncation)
            if kept is None:
                self.counts[f"longer than sequence_length={self.sequence_length}"] += 1
            elif not kept.num_targets:
                self.counts[_NO_TARGETS] += 1
                self._pointless = self._pointless or whole
            else:
                sequences.append(kept)
        return sequences

    def _refuse_pointless_masks(self, sequences: Sequence[TokenSequence]) -> None:
        if not sequences:
            reason = "; ".join(f"{count} x {text}" for text, count in self.counts.most_common()) or "there are no rows"
            if self._pointless is not None:
                reason += f". The first, {self._pointless.where}: {self._shown(self._pointless)}"
            raise ValueError(f"{self.path}: no conversation is left to train on ({reason}).")
        if all(all(s.is_trained[1:]) for s in sequences):
            raise ValueError(
                f"{sequences[0].where}: every token of every conversation would be learnt, prompts too: the loss mask "
                f"masks nothing. The first one is {self._shown(sequences[0])}. Set data.train_on to the roles to "
                f"learn (now {list(self.train_on)}), or use the pretraining stage."
            )

    def _shown(self, sequence: TokenSequence) -> str:
        stretches = groupby(zip(sequence.input_ids, sequence.is_trained, strict=True), key=itemgetter(1))
        texts = [(self.tokenizer.decode([token for token, _ in group]), trained) for trained, group in stretches]
        return repr("".join(f"⟦{text}⟧" if trained else text for text, trained in texts)[:300]) + " (⟦learnt⟧)"

    def _in_rows(self, sequences: list[TokenSequence]) -> list[list[TokenSequence]]:
        if not self.packing:
            return [[sequence] for sequence in sorted(sequences, key=lambda s: len(s.input_ids))]
        bins = best_fit([len(s.input_ids) - 1 for s in sequences], self.sequence_length)
        return [[sequences[i] for i in members] for members in bins]

    def _item_tokens(self) -> list[int]:
        return [sum(len(s.input_ids) - 1 for s in row) for row in self._rows]

    def _num_held_out(self) -> int:
        return len(self._held_out)

    def _step(self, share: Share) -> list[TokenBatch]:
        rows = [self._rows[i] for i in share.items]
        if not self.packing:
            rows.sort(key=lambda row: len(row[0].input_ids))
        size = self.micro_batch_size
        return [self._collate(rows[i : i + size]) for i in range(0, share.largest, size)]

    def _held_out_batch(self, items: Sequence[int]) -> TokenBatch:
        return self._collate([self._held_out[i] for i in items])

    def _collate(self, rows: list[list[TokenSequence]]) -> TokenBatch:
        return collate_rows(
            rows,
            length=self.sequence_length if self.packing else None,
            num_rows=self.micro_batch_size,
            byte_lengths=self.tokenizer.byte_lengths,
        )

    def _item_origins(self, item: int) -> list[str]:
        return [sequence.where for sequence in self._rows[item]]

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for row in self._rows:
            for sequence in row:
                digest.update(np.array(sequence.input_ids).tobytes() + bytes(sequence.is_trained))
        return digest.hexdigest()
