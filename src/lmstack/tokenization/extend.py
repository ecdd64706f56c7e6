"""A tokenizer with more tokens: old ids stay, and every text still comes back as it was."""

import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import tokenizers

from lmstack.tokenization.tokenizer import Tokenizer

Pair = tuple[str, str]

_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def extend_with_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """A tokenizer that has these texts as tokens too, wherever they stand as a whole word; Chinese ones anywhere.

    Args:
        tokenizer: What to extend; tokens it has already are passed over.
        tokens: Texts.

    Raises:
        ValueError: A token is empty or special, or would be decoded to another text.
    """
    backend = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.definition))
    for token in tokens:
        if not token or token in tokenizer.special_tokens:
            raise ValueError(f"{token!r} cannot be a new token: it is {'special already' if token else 'empty'}.")
        single_word = _CHINESE.search(token) is None
        backend.add_tokens([tokenizers.AddedToken(token, normalized=False, single_word=single_word)])
    extended = Tokenizer(backend.to_str(), tokenizer.eot_token, tokenizer.chat_template)
    for token in tokens:
        if (decoded := extended.decode(extended.encode(token))) != token:
            raise ValueError(
                f"{token!r} as a token of its own would be decoded to {decoded!r}: byte-level tokenizers take some "
                "letters for bytes. Leave it out, or let the tokenizer learn it from text (sources)."
            )
    return extended


def extend_from_text(tokenizer: Tokenizer, texts: Iterable[str], num_new: int) -> Tokenizer:
    """Byte-pair training gone on with: merges of what the old tokens leave, after the old merges.

    The old merges come first in every word, so new tokens only join what were neighbours before.

    Args:
        tokenizer: A byte-pair tokenizer.
        texts: Of the new domain; read once. Its distinct words are kept in memory.
        num_new: Tokens to add.

    Raises:
        ValueError: It is no byte-pair tokenizer, or the text has too few pairs.
    """
    definition = tokenizer.definition
    if definition["model"]["type"] != "BPE":
        raise ValueError(
            f"The model of the tokenizer is {definition['model']['type']}, and only BPE can be trained on. Name the "
            "new tokens instead (tokens)."
        )
    words: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words.update(tokenizer.cut_words(text))
    vocabulary = dict(definition["model"]["vocab"])
    vocabulary |= {token["content"]: token["id"] for token in definition.get("added_tokens", [])}  # keeps their ids
    next_id = tokenizer.vocab_size
    merges: list[Pair] = []
    for left, right in _Words(words).merges():
        if num_new == 0:
            break
        merges.append((left, right))
        if left + right not in vocabulary:
            vocabulary[left + right] = next_id
            next_id, num_new = next_id + 1, num_new - 1
    if num_new:
        raise ValueError(f"The text has pairs for {len(merges)} new tokens only. Give more text, or ask for fewer.")
    old_merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in definition["model"]["merges"]]
    model = definition["model"] | {"vocab": vocabulary, "merges": [list(m) for m in (*old_merges, *merges)]}
    return Tokenizer(json.dumps(definition | {"model": model}), tokenizer.eot_token, tokenizer.chat_template)


def old_pieces(old: Tokenizer, new: Tokenizer) -> dict[int, list[int]]:
    """What the text of each new token was cut into before; special tokens, which stand for no text, have no pieces.

    Args:
        old: The tokenizer that was extended.
        new: The extended one.

    Raises:
        ValueError: `new` gives some token of `old` another id.
    """
    if not new.extends(old):
        raise ValueError("The new tokenizer gives old tokens other ids. Make it with `lmstack tokenizer extend`.")
    known = old.text_entries()
    written = {index: entry for index, entry in new.text_entries().items() if index not in known}
    added = new.added_tokens
    return {index: old.encode(entry) if entry in added else old.encode_entry(entry) for index, entry in written.items()}


class _Words:
    """Distinct words in pieces, with the pairs of neighbours in them counted.

    Args:
        words: How often each word came.
    """

    def __init__(self, words: Counter[tuple[str, ...]]):
        self.pieces = [list(word) for word in words]
        self.counts = list(words.values())
        self.pairs: Counter[Pair] = Counter()
        self.holders: dict[Pair, set[int]] = {}
        self.queue: list[tuple[int, Pair]] = []
        for number in range(len(self.pieces)):
            self._tally(number, 1)

    def merges(self) -> Iterator[Pair]:
        """The commonest pair, joined everywhere, again and again; of equally common ones the first by code points."""
        while self.queue:
            negative, pair = heapq.heappop(self.queue)
            if self.pairs[pair] != -negative or negative == 0:  # an entry from before its count changed
                continue
            yield pair
            for number in list(self.holders[pair]):
                self._tally(number, -1)
                self.pieces[number] = _joined(self.pieces[number], pair)
                self._tally(number, 1)

    def _tally(self, number: int, sign: int) -> None:
        """Count the pairs of a word in, or out again."""
        for pair in pairwise(self.pieces[number]):
            self.pairs[pair] += sign * self.counts[number]
            heapq.heappush(self.queue, (-self.pairs[pair], pair))
            if sign > 0:
                self.holders.setdefault(pair, set()).add(number)
            else:
                self.holders[pair].discard(number)


def _joined(word: list[str], pair: Pair) -> list[str]:
    joined: list[str] = []
    place = 0
    while place < len(word):
        is_pair = tuple(word[place : place + 2]) == pair
        joined.append(pair[0] + pair[1] if is_pair else word[place])
        place += 2 if is_pair else 1
    return joined
