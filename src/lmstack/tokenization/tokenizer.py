"""A tokenizer that cannot be talked into emitting special tokens, around Hugging Face `tokenizers`."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32

END_OF_TEXT = "<|endoftext|>"
"""Opens and ends a document."""

_KNOWN_END_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
"""How well-known tokenizers spell it, for a `tokenizer.json` that comes without `tokenizer_config.json`."""

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"


class Tokenizer:
    """Text to token ids and back.

    What looks like a special token inside a text is encoded as ordinary text: special tokens enter a stream only by id,
    so no document can end itself. Nothing is added, cut or padded either.

    Args:
        definition: The contents of a `tokenizer.json`.
        eot_token: The token that opens and ends a document, or None when there is none.
    """

    def __init__(self, definition: str, eot_token: str | None):
        self._definition = json.loads(definition)
        self._backend = tokenizers.Tokenizer.from_str(definition)
        self._backend.no_truncation()
        self._backend.no_padding()
        self.eot_token = eot_token
        self.eot_id: int | None = None
        if eot_token is not None:
            self.eot_id = self._backend.token_to_id(eot_token)
            if self.eot_id is None:
                raise ValueError(
                    f"eot_token={eot_token!r} is not in the vocabulary of this tokenizer. "
                    f"Name one of its special tokens: {sorted(self._special_tokens())}, or none."
                )
            self._backend.add_special_tokens([eot_token])  # keeps its id; marks it as special where it was not
        self._backend.encode_special_tokens = True  # in a text they are text

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer stored in a `tokenizer.json`, or in the folder that holds one.

        The end-of-text token is the `eos_token` of a `tokenizer_config.json` beside it, otherwise a well-known name.

        Args:
            path: The file or its folder.
        """
        path = Path(path)
        file = path / TOKENIZER_FILE if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"There is no tokenizer at {path}: expected {TOKENIZER_FILE} or a folder that holds it.")
        definition = file.read_text(encoding="utf-8")
        try:
            tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the Rust library raises plain Exception
            raise ValueError(f"{file} is not a tokenizer.json that tokenizers can read: {error}.") from error
        return cls(definition, _find_eot(json.loads(definition), file.with_name(CONFIG_FILE)))

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, readable by Transformers too.

        Args:
            folder: Where; made if need be.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eot_token}
        text = json.dumps(self._definition, ensure_ascii=False, indent=1)
        (folder / TOKENIZER_FILE).write_text(text, encoding="utf-8")
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without any special token.

        Args:
            text: Any text; whatever looks like a special token is plain text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, on all cores unless `TOKENIZERS_PARALLELISM=false`.

        Args:
            texts: As in `encode`.
        """
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the Rust library raises plain Exception
            raise ValueError(self._explain(texts, error)) from error
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: Token ids.
            skip_special: Leave special tokens out.
        """
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id: the number of rows an embedding needs."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the definition and the end-of-text token, the same however the file is laid out."""
        content = {"tokenizer": self._definition, "eot_token": self.eot_token}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def byte_lengths(self) -> Int32[np.ndarray, " V"]:
        """UTF-8 bytes that each token stands for; special tokens stand for none.

        Exact for byte-level tokenizers and for those without a normalizer: the sum over a text's tokens is its length.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        special = self._special_tokens()
        added = {token["content"] for token in self._definition.get("added_tokens", [])}
        is_byte_level = "ByteLevel" in json.dumps(self._definition.get("decoder"))
        for token, index in self._backend.get_vocab(with_added_tokens=True).items():
            if token in special:
                continue
            if is_byte_level and token not in added:
                lengths[index] = len(token)  # one stand-in character per byte
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                lengths[index] = 1  # byte fallback
            else:
                lengths[index] = len(token.replace("▁", " ").encode())
        return lengths

    def _special_tokens(self) -> set[str]:
        return {token.content for token in self._backend.get_added_tokens_decoder().values() if token.special}

    def _explain(self, texts: Sequence[str], error: Exception) -> str:
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        if self._definition["model"].get("type") == "WordLevel":
            unknown = next((c for text in texts for c in text if c not in vocabulary), None)
            if unknown is not None:
                return (
                    f"The character {unknown!r} is not in the vocabulary of this character tokenizer "
                    f"({len(vocabulary)} entries). Build it from text that has it, or use a byte-level tokenizer."
                )
        return f"The tokenizer could not encode a text: {error}."

    def __getstate__(self) -> dict[str, Any]:
        return {"definition": json.dumps(self._definition), "eot_token": self.eot_token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _find_eot(definition: dict[str, Any], config_file: Path) -> str | None:
    if config_file.is_file():
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{config_file} is not JSON: {error}.") from error
        eos = config.get("eos_token")
        name: str | None = eos["content"] if isinstance(eos, dict) else eos
        return name
    special = {token["content"] for token in definition.get("added_tokens", []) if token.get("special")}
    return next((name for name in _KNOWN_END_OF_TEXT if name in special), None)
