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
CHAT_TEMPLATE_FILE = "chat_template.json"


class Tokenizer:
    """Text to token ids and back.

    What looks like a special token inside a text is encoded as ordinary text: special tokens enter a stream only by id,
    so no document can end itself. Nothing is added, cut or padded either.

    Args:
        definition: The contents of a `tokenizer.json`.
        eot_token: The token that opens and ends a document, or None when there is none.
        chat_template: How messages become tokens, as `ChatTemplate.to_dict` gives it; None where that is not known.
    """

    def __init__(self, definition: str, eot_token: str | None, chat_template: dict[str, str] | None = None):
        self.chat_template = chat_template
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
                    f"Name one of its special tokens: {sorted(self.special_tokens)}, or none."
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
        config = _read_json(file.with_name(CONFIG_FILE))
        return cls(definition, _find_eot(json.loads(definition), config), _find_chat_template(file.parent, config))

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json`, readable by Transformers too, and `chat_template.json`.

        Args:
            folder: Where; made if need be.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eot_token}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template["source"]
            config["bos_token"] = self.chat_template.get("bos_token")
            template = json.dumps(self.chat_template, ensure_ascii=False, indent=1)
            (folder / CHAT_TEMPLATE_FILE).write_text(template + "\n", encoding="utf-8")
        text = json.dumps(self._definition, ensure_ascii=False, indent=1)
        (folder / TOKENIZER_FILE).write_text(text, encoding="utf-8")
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def token_id(self, name: str) -> int | None:
        """The id of a token, special or not; None when the vocabulary has no such token.

        Args:
            name: How the vocabulary writes it.
        """
        index: int | None = self._backend.token_to_id(name)
        return index

    def with_special_tokens(self, names: Sequence[str], eot_token: str | None = None) -> "Tokenizer":
        """A tokenizer that has these special tokens too; those it lacks get the next ids.

        Args:
            names: Special tokens.
            eot_token: The token that opens and ends a document, for a tokenizer that has none.
        """
        backend = tokenizers.Tokenizer.from_str(json.dumps(self._definition))
        backend.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
        return Tokenizer(backend.to_str(), self.eot_token or eot_token, self.chat_template)

    def with_chat_template(self, template: dict[str, str]) -> "Tokenizer":
        """The same tokenizer with a chat template to be saved beside it.

        Args:
            template: As `ChatTemplate.to_dict` gives it.
        """
        return Tokenizer(json.dumps(self._definition), self.eot_token, template)

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

    def extends(self, other: "Tokenizer") -> bool:
        """Whether every token of another tokenizer has the same id here.

        Args:
            other: Perhaps with fewer tokens.
        """
        own = self._backend.get_vocab(with_added_tokens=True)
        theirs = other._backend.get_vocab(with_added_tokens=True)
        return all(own.get(token) == index for token, index in theirs.items())

    @property
    def definition(self) -> dict[str, Any]:
        """The contents of `tokenizer.json`; not to be changed."""
        definition: dict[str, Any] = self._definition
        return definition

    @property
    def added_tokens(self) -> frozenset[str]:
        """Tokens that are found in a text before its words are cut, special ones included."""
        return frozenset(token.content for token in self._backend.get_added_tokens_decoder().values())

    def cut_words(self, text: str) -> list[tuple[str, ...]]:
        """The words that no token crosses, each as the entries of the vocabulary it is cut into.

        Args:
            text: Any text.
        """
        words: dict[int | None, list[str]] = {}
        encoding = self._backend.encode(text, add_special_tokens=False)
        for word, token in zip(encoding.word_ids, encoding.tokens, strict=True):
            words.setdefault(word, []).append(token)
        return [tuple(word) for word in words.values()]

    def text_entries(self) -> dict[int, str]:
        """The vocabulary without special tokens: how each id is written in it."""
        special = self.special_tokens
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return {index: token for token, index in vocabulary.items() if token not in special}

    def merged_entries(self) -> frozenset[str]:
        """Entries of the vocabulary that byte-pair merges make longer ones from; none for other models."""
        merges = self._definition["model"].get("merges") or []
        return frozenset(part for merge in merges for part in (merge.split(" ") if isinstance(merge, str) else merge))

    def encode_entry(self, entry: str) -> list[int]:
        """The ids that the model alone cuts an entry of a vocabulary into: bytes written as the vocabulary writes them.

        Args:
            entry: As `text_entries` gives it, of this tokenizer or of one that extends it.
        """
        return [token.id for token in self._backend.model.tokenize(entry)]

    @cached_property
    def byte_lengths(self) -> Int32[np.ndarray, " V"]:
        """UTF-8 bytes that each token stands for; special tokens stand for none.

        Exact for byte-level tokenizers and for those without a normalizer: the sum over a text's tokens is its length.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        special = self.special_tokens
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

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """Names of the tokens that stand for no text."""
        decoder = self._backend.get_added_tokens_decoder()
        return frozenset(token.content for token in decoder.values() if token.special)

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
        return {
            "definition": json.dumps(self._definition),
            "eot_token": self.eot_token,
            "chat_template": self.chat_template,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _find_eot(definition: dict[str, Any], config: dict[str, Any] | None) -> str | None:
    if config is not None:
        eos = config.get("eos_token")
        name: str | None = eos["content"] if isinstance(eos, dict) else eos
        return name
    special = {token["content"] for token in definition.get("added_tokens", []) if token.get("special")}
    return next((name for name in _KNOWN_END_OF_TEXT if name in special), None)


def _find_chat_template(folder: Path, config: dict[str, Any] | None) -> dict[str, str] | None:
    """Our own file, or where Transformers keeps it: in a file of its own, or in the config."""
    own = _read_json(folder / CHAT_TEMPLATE_FILE)
    if own is not None and "kind" in own:
        return own
    jinja = folder / "chat_template.jinja"
    source = jinja.read_text(encoding="utf-8") if jinja.is_file() else (config or {}).get("chat_template")
    return jinja_chat_template(source, config or {}) if isinstance(source, str) else None


def jinja_chat_template(source: str, config: dict[str, Any]) -> dict[str, str]:
    """A template in Transformers' language as `ChatTemplate.from_dict` takes it.

    Args:
        source: The template.
        config: The `tokenizer_config.json` beside it, which names the token that opens a document.
    """
    bos = config.get("bos_token")
    name = bos["content"] if isinstance(bos, dict) else bos
    return {"kind": "jinja", "source": source} | ({"bos_token": name} if name else {})


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    return values
