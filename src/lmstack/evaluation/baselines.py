"""What compression without a neural network reaches on a corpus: the figures a language model has to beat."""

import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from lmstack.data.corpus import Corpus
from lmstack.data.manifest import Split
from lmstack.data.token_shards import TokenShards

_TUNING_SHARE = 20
"""One training document in so many tunes the interpolation weights."""

_EM_STEPS = 30
_NUM_BUCKETS = 12
"""Contexts are told apart by how often they occurred: 0, 1, 2-3, 4-7, ..."""


class TokenStream(NamedTuple):
    """Every token that a model predicts, with the two before it in its document.

    Attributes:
        target: The token; the end-of-text token after the last token of a document.
        previous: The token before it, in the same document.
        before_previous: The one before that; the token that opens the document where there is none.
    """

    target: Int64[np.ndarray, " N"]
    previous: Int64[np.ndarray, " N"]
    before_previous: Int64[np.ndarray, " N"]


def corpus_baselines(path: str) -> dict[str, float]:
    """Bits per byte of both baselines on the validation side of a corpus, given its training side.

    Args:
        path: Folder or URL of the corpus.

    Raises:
        ValueError: The corpus is unfinished or has no validation side.
    """
    corpus = Corpus(path)
    if not corpus.manifest.total("validation").tokens:
        raise ValueError(f"The corpus {path} has no validation side. Build it with validation_fraction above 0.")
    train, validation = (_documents(corpus, split) for split in ("train", "validation"))
    texts = [_text(corpus, side) for side in (train, validation)]
    vocab_size, eot_id = corpus.tokenizer.vocab_size, corpus.tokenizer.eot_id
    bits = trigram_bits(train, validation, vocab_size=vocab_size, eot_id=eot_id)
    return {
        "xz_bits_per_byte": xz_bits_per_byte(*texts),
        "trigram_bits_per_byte": bits / corpus.manifest.total("validation").bytes,
        "validation_bytes": corpus.manifest.total("validation").bytes,
        "validation_tokens": corpus.manifest.total("validation").tokens,
    }


def xz_bits_per_byte(train_text: bytes, validation_text: bytes) -> float:
    """Bits that `xz -9e` adds for each byte of the validation text when it comes after the training text.

    Args:
        train_text: What the compressor has seen; up to its window of 64 MiB counts.
        validation_text: What is measured; not empty.
    """
    with ThreadPoolExecutor(2) as pool:  # the compressor lets go of the interpreter
        before, after = pool.map(_xz_size, (train_text, train_text + validation_text))
    return 8 * (after - before) / len(validation_text)


def _xz_size(text: bytes) -> int:
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


def trigram_bits(
    train: Sequence[np.ndarray], validation: Sequence[np.ndarray], *, vocab_size: int, eot_id: int | None
) -> float:
    """Bits of all validation tokens under an interpolated trigram: each token of a document, and its end.

    p(w | u v) = a f(w | u v) + (1 - a) (b f(w | v) + (1 - b) (c f(w) + (1 - c) / V)) with relative frequencies f
    (Jelinek and Mercer 1980). The weights depend on how often their context occurred; they are fitted by
    expectation-maximization on training documents that are left out of the counts for it, and the final counts are of
    all training documents.

    Args:
        train: Tokens of each training document, as stored.
        validation: Tokens of each validation document, as stored.
        vocab_size: Number of token ids.
        eot_id: The token that opens each document; None when documents are stored bare.
    """
    tuning = [document for i, document in enumerate(train) if i % _TUNING_SHARE == 0]
    counted = [document for i, document in enumerate(train) if i % _TUNING_SHARE]
    if not counted:
        raise ValueError(f"A trigram needs two training documents at least, to tune it; there are {len(train)}.")
    held_out = token_stream(tuning, vocab_size, eot_id)
    weights = _fit(_lookup(Trigram.count(token_stream(counted, vocab_size, eot_id), vocab_size), held_out))
    model = Trigram.count(token_stream(train, vocab_size, eot_id), vocab_size)
    probabilities = _interpolate(_lookup(model, token_stream(validation, vocab_size, eot_id)), weights)[-1]
    return float(-np.log2(probabilities).sum())


def token_stream(documents: Sequence[np.ndarray], vocab_size: int, eot_id: int | None) -> TokenStream:
    """What is predicted in each document, with its context; a context never reaches into another document.

    Args:
        documents: Tokens of each document as stored: with the token that opens it, where there is one.
        vocab_size: Stands before the first token where documents are stored bare.
        eot_id: The token that opens and ends each document; None when documents are stored bare.
    """
    opening = vocab_size if eot_id is None else eot_id
    ending = [] if eot_id is None else [eot_id]
    bodies = [document if eot_id is None else document[1:] for document in documents]
    padded = [np.concatenate([[opening, opening], body, ending]).astype(np.int64) for body in bodies]
    columns = [np.concatenate([tokens[shift : len(tokens) - 2 + shift] for tokens in padded]) for shift in (2, 1, 0)]
    return TokenStream(*columns)


@dataclass(frozen=True)
class _Counts:
    """How often things occurred, sorted by thing."""

    keys: Int64[np.ndarray, " N"]
    counts: Int64[np.ndarray, " N"]

    def __call__(self, keys: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.counts[places], 0)


@dataclass(frozen=True)
class Trigram:
    """Counts of one, two and three tokens, and of their contexts.

    Attributes:
        base: One more than the largest id, openings of bare documents included: digits of the keys.
        vocab_size: Number of ids that can be predicted.
        ngrams: Counts of stretches of one, two and three tokens.
        contexts: How often each of them was preceded by its context, for two and three tokens.
        total: All tokens.
    """

    base: int
    vocab_size: int
    ngrams: tuple[_Counts, _Counts, _Counts]
    contexts: tuple[_Counts, _Counts]
    total: int

    @classmethod
    def count(cls, stream: TokenStream, vocab_size: int) -> "Trigram":
        """Counts of a stream.

        Args:
            stream: What to count.
            vocab_size: Number of ids that can be predicted.
        """
        base = vocab_size + 1
        keys = _keys(stream, base)
        one, two, three = (_Counts(*np.unique(key, return_counts=True)) for key in keys)
        contexts = [_Counts(*np.unique(context, return_counts=True)) for context in _context_keys(stream, base)]
        return cls(base, vocab_size, (one, two, three), (contexts[0], contexts[1]), len(stream.target))


class _Evidence(NamedTuple):
    """For each token of a stream and each order: relative frequency, and bucket of its context."""

    frequencies: list[Float64[np.ndarray, " N"]]
    buckets: list[Int64[np.ndarray, " N"]]
    uniform: float


def _keys(stream: TokenStream, base: int) -> list[np.ndarray]:
    two, three = _context_keys(stream, base)
    return [stream.target, two * base + stream.target, three * base + stream.target]


def _context_keys(stream: TokenStream, base: int) -> list[np.ndarray]:
    return [stream.previous, stream.before_previous * base + stream.previous]


def _lookup(model: Trigram, stream: TokenStream) -> _Evidence:
    contexts = [np.full(len(stream.target), model.total)]
    contexts += [counts(keys) for counts, keys in zip(model.contexts, _context_keys(stream, model.base), strict=True)]
    hits = [counts(keys) for counts, keys in zip(model.ngrams, _keys(stream, model.base), strict=True)]
    frequencies = [hit / np.maximum(context, 1) for hit, context in zip(hits, contexts, strict=True)]
    return _Evidence(frequencies, [_bucket(context) for context in contexts], 1 / model.vocab_size)


def _bucket(counts: np.ndarray) -> np.ndarray:
    buckets: np.ndarray = np.minimum(np.frexp(counts.astype(float))[1], _NUM_BUCKETS - 1).astype(np.int64)
    return buckets


def _interpolate(evidence: _Evidence, weights: list[np.ndarray]) -> list[np.ndarray]:
    """Probabilities of the uniform distribution and of each order, the last one the whole model's."""
    probabilities = [np.full(len(evidence.frequencies[0]), evidence.uniform)]
    for frequency, bucket, weight in zip(evidence.frequencies, evidence.buckets, weights, strict=True):
        share = weight[bucket]
        probabilities.append(share * frequency + (1 - share) * probabilities[-1])
    return probabilities


def _fit(evidence: _Evidence) -> list[Float64[np.ndarray, " K"]]:
    """The weight of each order in each bucket of contexts that makes the held-out tokens likeliest."""
    weights: list[np.ndarray] = []
    lower = np.full(len(evidence.frequencies[0]), evidence.uniform)
    for frequency, bucket in zip(evidence.frequencies, evidence.buckets, strict=True):
        weight = np.full(_NUM_BUCKETS, 0.5)
        weight[0] = 0.0  # a context that never occurred says nothing
        occurrences = np.bincount(bucket, minlength=_NUM_BUCKETS)
        for _ in range(_EM_STEPS):
            higher = weight[bucket] * frequency
            responsibility = higher / (higher + (1 - weight[bucket]) * lower)
            weight = np.bincount(bucket, responsibility, _NUM_BUCKETS) / np.maximum(occurrences, 1)
        weight = np.where(occurrences > 0, np.minimum(weight, 1 - 1e-6), 0.0)  # never certain: bits stay finite
        lower = weight[bucket] * frequency + (1 - weight[bucket]) * lower
        weights.append(weight)
    return weights


def _text(corpus: Corpus, documents: Sequence[np.ndarray]) -> bytes:
    """The text of documents one after another; nothing marks their ends, which spares the compressor to code them."""
    return "".join(corpus.tokenizer.decode(document.tolist(), skip_special=True) for document in documents).encode()


def _documents(corpus: Corpus, split: Split) -> list[np.ndarray]:
    sources = [name for name, source in corpus.manifest.sources.items() if getattr(source, split).tokens]
    shards: list[TokenShards] = [corpus.shards(split, name) for name in sources]
    return [shard.document(i) for shard in shards for i in range(shard.num_documents)]
