import lzma
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lmstack.evaluation import baselines
from lmstack.evaluation.baselines import Trigram, corpus_baselines, token_stream, trigram_bits, xz_bits_per_byte
from lmstack.tokenization import char_tokenizer
from tiny_corpus import tiny_corpus

EOT = 9
DOCUMENTS = [np.array([EOT, *body]) for body in ([1, 2, 1], [1, 2], [3, 1, 2, 1, 2], [2])]


def test_xz_counts_only_what_the_validation_text_adds() -> None:
    rng = np.random.default_rng(0)
    seen, new = (rng.integers(0, 256, 4000, dtype=np.uint8).tobytes() for _ in range(2))
    assert xz_bits_per_byte(seen, seen) < 0.3  # a copy of what it has seen
    assert abs(xz_bits_per_byte(seen, new) - 8) < 0.3  # noise cannot be compressed
    sizes = [len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) for text in (seen, seen + new)]
    assert xz_bits_per_byte(seen, new) == 8 * (sizes[1] - sizes[0]) / len(new)


def test_every_token_and_every_end_is_predicted_once_from_its_own_document() -> None:
    stream = token_stream(DOCUMENTS[:2], 10, EOT)
    assert stream.target.tolist() == [1, 2, 1, EOT, 1, 2, EOT]
    assert stream.previous.tolist() == [EOT, 1, 2, 1, EOT, 1, 2]
    assert stream.before_previous.tolist() == [EOT, EOT, 1, 2, EOT, EOT, 1]


def test_bare_documents_predict_no_end() -> None:
    stream = token_stream([np.array([1, 2]), np.array([3])], 10, None)
    assert stream.target.tolist() == [1, 2, 3]
    assert stream.previous.tolist() == [10, 1, 10]
    assert stream.before_previous.tolist() == [10, 10, 10]


def naive_probability(
    train: list[np.ndarray], context: tuple[int, int], token: int, vocab: int, weights: list
) -> float:
    """Token by token with dictionaries."""
    one, two, three, after_one, after_two = Counter(), Counter(), Counter(), Counter(), Counter()
    total = 0
    for document in train:
        padded = [EOT, EOT, *document[1:].tolist(), EOT]
        for u, v, w in zip(padded, padded[1:], padded[2:], strict=False):
            total += 1
            one[w] += 1
            two[v, w] += 1
            three[u, v, w] += 1
            after_one[v] += 1
            after_two[u, v] += 1
    u, v = context
    p = 1 / vocab
    for hits, count, weight in zip(
        (one[token], two[v, token], three[u, v, token]), (total, after_one[v], after_two[u, v]), weights, strict=True
    ):
        bucket = min(count.bit_length(), 11)
        p = weight[bucket] * (hits / max(count, 1)) + (1 - weight[bucket]) * p
    return p


def test_bits_equal_those_of_a_trigram_written_with_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    train = [np.array([EOT, *rng.integers(0, 9, 12)]) for _ in range(40)]
    held_out = [np.array([EOT, *rng.integers(0, 9, 5)]) for _ in range(3)]
    weights = [rng.uniform(0.1, 0.9, 12) for _ in range(3)]
    monkeypatch.setattr(baselines, "_fit", lambda evidence: weights)
    expected = 0.0
    for document in held_out:
        padded = [EOT, EOT, *document[1:].tolist(), EOT]
        for u, v, w in zip(padded, padded[1:], padded[2:], strict=False):
            expected -= math.log2(naive_probability(train, (u, v), w, 10, weights))
    assert trigram_bits(train, held_out, vocab_size=10, eot_id=EOT) == pytest.approx(expected, rel=1e-12)


def test_probabilities_of_all_tokens_add_up_to_one_in_every_context() -> None:
    rng = np.random.default_rng(2)
    train = [np.array([EOT, *rng.integers(0, 9, 15)]) for _ in range(30)]
    model = Trigram.count(token_stream(train, 10, EOT), 10)
    weights = [np.concatenate([[0.0], rng.uniform(0, 1, 11)]) for _ in range(3)]
    for u, v in [(1, 2), (EOT, EOT), (3, 3), (EOT, 0)]:
        column = [np.full(10, x) for x in (v, u)]
        stream = baselines.TokenStream(np.arange(10), *column)
        assert baselines._interpolate(baselines._lookup(model, stream), weights)[-1].sum() == pytest.approx(1)


def test_weights_follow_what_predicts_held_out_text() -> None:
    rng = np.random.default_rng(3)
    noise = [np.array([EOT, *rng.integers(0, 9, 50)]) for _ in range(200)]
    cycle = [np.array([EOT, *[(s + i) * 2 % 9 for i in range(50)]]) for s in rng.integers(0, 9, 200)]
    per_token = {
        name: trigram_bits(text[:180], text[180:], vocab_size=10, eot_id=EOT) / (20 * 51)
        for name, text in {"noise": noise, "cycle": cycle}.items()
    }
    assert abs(per_token["noise"] - math.log2(9)) < 0.12  # a little more than noise needs, for its ends
    assert per_token["cycle"] < 0.3  # all but the start and the end of a document is certain


def test_validation_text_is_not_looked_at_when_the_weights_are_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fit = baselines._fit
    monkeypatch.setattr(baselines, "_fit", lambda evidence: seen.append(fit(evidence)) or seen[-1])
    rng = np.random.default_rng(4)
    train = [np.array([EOT, *rng.integers(0, 5, 20)]) for _ in range(60)]
    trigram_bits(train, [np.array([EOT, 1, 1, 1])], vocab_size=10, eot_id=EOT)
    trigram_bits(train, [np.array([EOT, 8, 7, 6])], vocab_size=10, eot_id=EOT)
    assert all(np.array_equal(a, b) for a, b in zip(*seen, strict=True))


def test_tokens_never_seen_cost_bits_but_not_infinitely_many() -> None:
    train = [np.array([EOT, 1, 1, 1, 1])] * 50
    bits = trigram_bits(train, [np.array([EOT, 8])], vocab_size=10, eot_id=EOT)
    assert 5 < bits < 100


def test_one_training_document_is_refused() -> None:
    with pytest.raises(ValueError, match="two training documents at least"):
        trigram_bits([np.array([EOT, 1])], [np.array([EOT, 1])], vocab_size=10, eot_id=EOT)


@pytest.mark.parametrize("bare", [False, True])
def test_figures_of_a_corpus_are_per_byte_of_its_validation_text(tmp_path: Path, bare: bool) -> None:
    train = [f"né {i} times {i % 7} is {i * (i % 7)}" for i in range(80)]
    held_out = ["né 81 times 4 is 324", "né 90 times 6 is 540"]
    tokenizer = char_tokenizer([*train, *held_out]) if bare else None
    path = tiny_corpus(tmp_path, {"a": train}, {"a": held_out}, tokenizer)
    figures = corpus_baselines(str(path))
    size = sum(len(text.encode()) for text in held_out)
    assert figures["validation_bytes"] == size
    assert figures["xz_bits_per_byte"] == xz_bits_per_byte("".join(train).encode(), "".join(held_out).encode())
    assert 0.5 < figures["trigram_bits_per_byte"] < 4


def test_a_corpus_without_validation_has_no_baselines(tmp_path: Path) -> None:
    path = tiny_corpus(tmp_path, {"a": ["some", "text"]}, {})
    with pytest.raises(ValueError, match="has no validation side"):
        corpus_baselines(str(path))
