"""Prompts to answer, for reinforcement learning."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lmstack.data.batch import PromptBatch
from lmstack.data.chat_data import OnBadRow, leave_out, read_rows, refuse_overlap, split_by_prompt
from lmstack.data.conversations import Conversation, read_unanswered
from lmstack.data.item_loader import Share
from lmstack.data.modules.items import ItemData


@dataclass(frozen=True)
class _Prompt:
    ids: list[int]
    row: dict[str, Any]


class PromptData(ItemData):
    """Prompts, each with its source record, in an order that depends only on the seed.

    Args:
        path: JSONL, JSON or Parquet files, folders or globs: `prompt` (text or messages), or any layout of
            conversations, whose last answer is left out.
        tokenizer: A tokenizer.json, its folder, or the folder of a run whose tokenizer is taken.
        max_prompt_tokens: Longest prompt, the opening of the answer included.
        prompts_per_step: Prompts of a rollout, over all ranks.
        chat_template: `chatml`, `llama3`, `plain`, or a file with a Jinja template; null takes the tokenizer's own.
        add_special_tokens: Give the tokenizer the special tokens that the template needs.
        too_long: Whether a longer prompt stops the run or is left out and counted.
        on_bad_row: Whether a row that cannot be used stops the run or is left out and counted.
        validation_path: Files to validate on; null holds out some of `path`.
        validation_fraction: Share of the prompts that is held out, by the hash of their text.
        max_validation_prompts: At most so many.
        num_episodes: Prompts of the run, over all ranks; null goes on until the trainer stops.
        seed: Another seed is another order.
    """

    batch_size_name = "prompts_per_step"

    def __init__(
        self,
        path: str | list[str],
        tokenizer: str,
        max_prompt_tokens: int,
        prompts_per_step: int,
        *,
        chat_template: str | None = None,
        add_special_tokens: bool = False,
        too_long: OnBadRow = "error",
        on_bad_row: OnBadRow = "error",
        validation_path: str | list[str] | None = None,
        validation_fraction: float = 0.05,
        max_validation_prompts: int = 128,
        num_episodes: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer,
            chat_template,
            add_special_tokens=add_special_tokens,
            global_batch_size=prompts_per_step,
            micro_batch_size=1,
            num_epochs=None,
            seed=seed,
        )
        if num_episodes is not None and num_episodes < 1:
            raise ValueError(
                f"data.num_episodes={num_episodes}: must be 1 or more, or null for a run of trainer.max_steps."
            )
        self.validation_batch_size = None  # as many as a rollout
        self.path = path
        self.max_prompt_tokens = max_prompt_tokens
        self.prompts_per_step = prompts_per_step
        self.too_long = too_long
        self.on_bad_row = on_bad_row
        self.validation_path = validation_path
        self.validation_fraction = validation_fraction
        self.max_validation_prompts = max_validation_prompts
        self.num_episodes = num_episodes
        self._prompts: list[_Prompt] = []
        self._held_out: list[_Prompt] = []

    def _load(self) -> None:
        conversations = read_rows(self.path, read_unanswered, self.on_bad_row, self.counts)
        if self.validation_path is None:
            train, held_out = split_by_prompt(conversations, lambda c: c.prompt_text, self.validation_fraction)
        else:
            train = conversations
            held_out = read_rows(self.validation_path, read_unanswered, self.on_bad_row, self.counts)
            refuse_overlap((c.prompt_text for c in train), (c.prompt_text for c in held_out))
        self._prompts, self._held_out = self._render(train), self._render(held_out)[: self.max_validation_prompts]
        if not self._prompts:
            raise ValueError(f"{self.path}: no prompt is left; max_prompt_tokens={self.max_prompt_tokens} is too few.")
        if self.num_episodes is not None:
            self.num_epochs = self.num_episodes / len(self._prompts)
        self.tell(f"{len(self._prompts):,} prompts, {len(self._held_out):,} held out")

    def _render(self, conversations: Sequence[Conversation]) -> list[_Prompt]:
        prompts = []
        for conversation in conversations:
            try:
                ids = self.chat_template.render_prompt(conversation.messages, self.tokenizer)
            except ValueError as error:
                leave_out(error, conversation.where, self.on_bad_row, self.counts)
                continue
            if len(ids) <= self.max_prompt_tokens:
                prompts.append(_Prompt(ids, {**conversation.row, "source_line": conversation.where}))
            elif self.too_long == "error":
                raise ValueError(
                    f"{conversation.where}: the prompt has {len(ids)} tokens, "
                    f"max_prompt_tokens={self.max_prompt_tokens}. Raise it "
                    "(the model's context must hold prompt and response), or set data.too_long=drop."
                )
            else:
                self.counts[f"longer than max_prompt_tokens={self.max_prompt_tokens}"] += 1
        return prompts

    def _item_tokens(self) -> list[int]:
        return [len(prompt.ids) for prompt in self._prompts]

    def _num_held_out(self) -> int:
        return len(self._held_out)

    def _step(self, share: Share) -> PromptBatch:
        prompts = [self._prompts[i] for i in share.items]
        numbers = torch.arange(share.first, share.first + len(prompts))
        return PromptBatch([p.ids for p in prompts], [p.row for p in prompts], numbers)

    def _held_out_batch(self, items: Sequence[int]) -> PromptBatch:
        prompts = [self._held_out[i] for i in items]
        return PromptBatch(
            [p.ids for p in prompts], [p.row for p in prompts], torch.tensor(list(items), dtype=torch.int64)
        )

    def _item_origins(self, item: int) -> list[str]:
        return [str(self._prompts[item].row["source_line"])]

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for prompt in self._prompts:
            digest.update(np.array([*prompt.ids, -1]).tobytes())
        return digest.hexdigest()
