"""Batched generation with a key-value cache.

A row is independent of the rows beside it: it has its own parameters, its own random numbers and its own positions, and
leaves the batch when it stops.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from lmstack.generation.decoding import Decoding, Row
from lmstack.generation.request import Completion, SamplingParams
from lmstack.generation.text import TextStream
from lmstack.models.transformer import Transformer
from lmstack.tokenization.tokenizer import Tokenizer


class GenerationEngine:
    """Continues prompts with a transformer.

    The engine only reads the model: no gradients, the global random state untouched, each module's train or eval mode
    as it was before.

    Args:
        transformer: The model; its weights may change between calls.
        tokenizer: For text in and out, and for the ids that exist where the model's vocabulary is padded; None works
            on ids alone.
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer | None) -> None:
        if not transformer.config.causal:
            raise ValueError("transformer.causal=False: only a causal model can generate.")
        if tokenizer is not None and tokenizer.vocab_size > transformer.config.vocab_size:
            raise ValueError(
                f"The tokenizer has {tokenizer.vocab_size} tokens, the model {transformer.config.vocab_size}. "
                "Use the tokenizer that the model was trained with."
            )
        self.transformer = transformer
        self.tokenizer = tokenizer

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt: the end-of-text token, which opens a document in training, then the text.

        Args:
            text: May be empty when the tokenizer has an end-of-text token.

        Raises:
            ValueError: There is no tokenizer, or nothing to start from.
        """
        if self.tokenizer is None:
            raise ValueError("The engine has no tokenizer: give it one, or pass token ids.")
        opening = [] if self.tokenizer.eot_id is None else [self.tokenizer.eot_id]
        ids = opening + self.tokenizer.encode(text)
        if not ids:
            raise ValueError(
                "The prompt is empty and the tokenizer has no end-of-text token to start from. Give a prompt."
            )
        return ids

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Continue prompts as one batch.

        Args:
            prompts: Token ids, used as they are; at least one id each, at most the model's max_seq_len.
            params: One for all (the seed included), or one for each prompt.

        Returns:
            A completion for each prompt, in order.

        Raises:
            ValueError: A prompt is empty or too long, or holds an unknown id; or params do not fit.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(each)} params: give one, or one for each prompt.")
        rows = [self._row(number, prompt, p) for number, (prompt, p) in enumerate(zip(prompts, each, strict=True))]
        running = [row for row in rows if not row.is_full]
        if running:
            decoding = Decoding(self.transformer, self._num_ids, running)
            with _reading(self.transformer):
                while decoding.rows:
                    decoding.step()
        return [row.completion() for row in rows]

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Generator[str, None, Completion]:
        """Continue one prompt and yield its text as it appears.

        The pieces joined are the completion's text. Between two pieces the model is as it was before the call.

        Args:
            prompt: Token ids, used as they are.
            params: How to continue.

        Yields:
            The next piece, never empty.

        Returns:
            The completion (the `value` of the generator's StopIteration, or of `yield from`).
        """
        row = self._row(0, prompt, params)
        if row.is_full:
            return row.completion()
        decoding = Decoding(self.transformer, self._num_ids, [row])
        while decoding.rows:
            with _reading(self.transformer):
                decoding.step()
            if row.text is not None and (piece := row.text.take()):
                yield piece
        return row.completion()

    @property
    def _num_ids(self) -> int:
        return self.transformer.config.vocab_size if self.tokenizer is None else self.tokenizer.vocab_size

    def _row(self, number: int, prompt: Sequence[int], params: SamplingParams) -> Row:
        vocab_size, max_len = self.transformer.config.vocab_size, self.transformer.config.max_seq_len
        if not 1 <= len(prompt) <= max_len:
            raise ValueError(
                f"Prompt {number} has {len(prompt)} tokens: must be from 1 to the model's max_seq_len, {max_len}. "
                + ("Shorten it." if prompt else "Start it with the end-of-text token, as encode_prompt does.")
            )
        unknown = [i for i in prompt if not 0 <= i < vocab_size]
        if unknown:
            raise ValueError(
                f"Prompt {number} holds the id {unknown[0]}, outside the model's vocabulary of {vocab_size}."
            )
        if self.tokenizer is None and params.stop_strings:
            raise ValueError(f"stop_strings={params.stop_strings!r} need a tokenizer, which this engine does not have.")
        text = None if self.tokenizer is None else TextStream(self.tokenizer, prompt, params.stop_strings)
        return Row(list(prompt), params, max_len, text, torch.Generator().manual_seed(params.seed))


@contextmanager
def _reading(transformer: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, no compiled code (each step has another shape); afterwards everything is as before."""
    training = [module for module in transformer.modules() if module.training]
    for module in training:
        module.training = False
    is_compiled = any(module._compiled_call_impl is not None for module in transformer.modules())
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
            yield
    finally:
        for module in training:
            module.training = True
