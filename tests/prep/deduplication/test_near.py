"""Near-duplicates against brute force over all pairs, whatever the order, the partitions and the batches."""

import itertools
import json
import random
from pathlib import Path

import pytest

from corpus_stages import run_stage
from lmstack.prep.deduplication.near import NearDuplicates
from lmstack.prep.document import Document, Dropped

VOCABULARY = [f"word{number:03d}" for number in range(500)]


def _corpus(seed: int, num_bases: int = 40) -> list[Document]:
    """Random texts, each with edited copies of some similarity."""
    draw = random.Random(seed)
    texts = []
    for _ in range(num_bases):
        words = draw.choices(VOCABULARY, k=draw.randint(60, 200))
        texts.append(" ".join(words))
        for _ in range(draw.randint(0, 3)):
            copy = list(words)
            for _ in range(draw.randint(0, 6)):
                copy[draw.randrange(len(copy))] = draw.choice(VOCABULARY)
            texts.append(" ".join(copy))
    return [Document(text, f"{number:04d}", "web") for number, text in enumerate(texts)]


def _similarity(left: str, right: str, n: int = 5) -> float:
    sets = []
    for text in (left, right):
        words = text.split()
        sets.append({tuple(words[i : i + n]) for i in range(len(words) - n + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def _clusters(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "clusters.jsonl").read_text().splitlines()]


def test_what_is_dropped_and_kept_agrees_with_brute_force(tmp_path: Path) -> None:
    documents = _corpus(0)
    verdicts, _ = run_stage(NearDuplicates(threshold=0.8), [documents[:30], [], documents[30:]], tmp_path / "run")
    texts = {document.id: document.text for document in documents}
    kept = [identity for identity, verdict in verdicts.items() if isinstance(verdict, Document)]
    dropped = {identity: verdict for identity, verdict in verdicts.items() if isinstance(verdict, Dropped)}
    assert len(dropped) > 20
    missed = [pair for pair in itertools.combinations(kept, 2) if _similarity(texts[pair[0]], texts[pair[1]]) >= 0.8]
    assert missed == []
    for identity, verdict in dropped.items():
        original = verdict.detail.split()[1].rstrip(",")
        assert original in kept
        similarity = _similarity(texts[identity], texts[original])
        assert similarity >= 0.8
        assert verdict.detail == f"of {original}, similarity {similarity:.3f}"


def test_order_and_partitions_do_not_matter(tmp_path: Path) -> None:
    documents = _corpus(1)
    shuffled = list(documents)
    random.Random(0).shuffle(shuffled)
    first, _ = run_stage(NearDuplicates(), [documents], tmp_path / "one")
    second, _ = run_stage(NearDuplicates(), [shuffled[:7], shuffled[7:50], shuffled[50:]], tmp_path / "three")
    assert first == second
    files = [(tmp_path / name / "clusters.jsonl").read_bytes() for name in ("one", "three")]
    assert files[0] == files[1]


def test_the_longest_is_kept_and_of_equal_ones_the_smallest_id(tmp_path: Path) -> None:
    words = VOCABULARY[:200]
    texts = {"b": words, "a": words, "c": [*words, "tail"], "d": ["unrelated", *VOCABULARY[300:400]]}
    documents = [Document(" ".join(text), identity, "web") for identity, text in texts.items()]
    verdicts, _ = run_stage(NearDuplicates(), [documents], tmp_path / "run")
    assert [key for key, verdict in verdicts.items() if isinstance(verdict, Document)] == ["c", "d"]
    (cluster,) = _clusters(tmp_path / "run")
    assert cluster["cluster"] == "c"
    assert [member["id"] for member in cluster["members"]] == ["c", "a", "b"]
    assert verdicts["c"].metadata == {"cluster": "c"}
    assert verdicts["d"].metadata == {}


def test_a_chain_drops_only_what_resembles_a_kept_document(tmp_path: Path) -> None:
    """Each resembles the next, the ends do not resemble each other."""
    documents = [
        Document(" ".join(VOCABULARY[start : start + 110]), f"{start:03d}", "web") for start in range(0, 60, 10)
    ]
    verdicts, _ = run_stage(NearDuplicates(threshold=0.8), [documents], tmp_path / "run")
    assert len(_clusters(tmp_path / "run")) == 1
    kept = [key for key, verdict in verdicts.items() if isinstance(verdict, Document)]
    assert kept == ["000", "020", "040"]


def test_a_template_of_many_pages_is_found_by_its_leaders(tmp_path: Path) -> None:
    template = " ".join(VOCABULARY[:300])
    documents = [Document(f"{template} page{number}", f"{number:03d}", "web") for number in range(100)]
    verdicts, _ = run_stage(NearDuplicates(), [documents], tmp_path / "run")
    assert sum(isinstance(verdict, Document) for verdict in verdicts.values()) == 1


def test_chinese_is_compared_by_characters(tmp_path: Path) -> None:
    draw = random.Random(0)
    text = "".join(chr(0x4E00 + draw.randrange(2000)) for _ in range(300))
    documents = [Document(text, "a", "web"), Document(text[:250] + "。" + text[250:290], "b", "web")]
    verdicts, _ = run_stage(NearDuplicates(), [documents], tmp_path / "run")
    assert isinstance(verdicts["b"], Dropped)
    assert verdicts["b"].reason == "near duplicate"


def test_texts_without_words_are_no_duplicates(tmp_path: Path) -> None:
    documents = [Document("...", "a", "web"), Document("!!!", "b", "web"), Document("", "c", "web")]
    verdicts, _ = run_stage(NearDuplicates(), [documents, []], tmp_path / "run")
    assert all(isinstance(verdict, Document) for verdict in verdicts.values())


def test_a_corpus_without_documents(tmp_path: Path) -> None:
    assert run_stage(NearDuplicates(), [[]], tmp_path / "run")[0] == {}


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"threshold": 1.5}, {"num_bands": 0}, {"ngram": 0}])
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        NearDuplicates(**settings)
