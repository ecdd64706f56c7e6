"""How well a language model predicts a text, in bits per byte."""

import math
from pathlib import Path


class BitsPerByte:
    """A model that says how hard a text is to predict."""

    def __init__(self, model: str, max_tokens: int):
        """Load the model, on the CPU.

        Args:
            model: A run, checkpoint, weights or Hugging Face folder, with a tokenizer in it.
            max_tokens: Tokens looked at, from the beginning of a text.

        Raises:
            ValueError: There are no weights or there is no tokenizer.
        """
        from lmstack.models.checkpoint import load_transformer, weights_folder
        from lmstack.tokenization import Tokenizer

        folder = weights_folder(model)
        tokenizer = folder / "tokenizer"
        self._tokenizer = Tokenizer.load(tokenizer if tokenizer.is_dir() else Path(folder))
        self._transformer = load_transformer(folder).eval()
        limit = self._transformer.config.max_seq_len
        self._max_tokens = max_tokens if limit is None else min(max_tokens, limit)

    def __call__(self, text: str) -> float:
        """Bits per byte of the beginning of a text; 0 of one with a single token.

        Args:
            text: The text.
        """
        import torch

        from lmstack.models.likelihood import cross_entropy_sum

        opening = [] if self._tokenizer.eot_id is None else [self._tokenizer.eot_id]
        ids = (opening + self._tokenizer.encode(text))[: self._max_tokens + 1]
        num_bytes = len(self._tokenizer.decode(ids[1:]).encode())
        if len(ids) < 2 or not num_bytes:
            return 0.0
        tokens = torch.tensor([ids])
        with torch.no_grad():
            hidden = self._transformer(tokens[:, :-1])
            sums = cross_entropy_sum(self._transformer, hidden, tokens[:, 1:], chunk_size=1024)
        return float(sums.cross_entropy) / math.log(2) / num_bytes
