"""A corpus with known dirt: 50,000 documents or more, and the truth about each.

    python benchmarks/dirty_corpus.py --out data/dirty
    python benchmarks/dirty_corpus.py --out data/dirty_small --documents 2000 --long-line-mb 1

Writes `corpus/` (JSONL, JSONL.gz, Parquet, CSV, text, HTML, WARC), `broken/` (inputs that cannot be read whole),
`evaluation/` (a benchmark as JSONL and as an lm-eval task), and `truth.jsonl` with a line for each document: its name
(the field `name`, the stem of its file, or the last part of its address), class, file, language, and what the class
asks for. The text is made up from the words of Python's documentation and from phrases in five other languages, so
nothing is downloaded, and the same seed gives the same bytes with the same Python. `corpus_score.py` compares what a
preparation made of it with the truth.

Near-duplicates carry their true Jaccard similarity over 5-grams of words. Documents that are not planted as duplicates
have similarities below 0.5, which is checked: of English ones by the share of 5-grams that occur in any other at all,
of the others, made of fewer words, pair by pair.
"""

import argparse
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dirty_corpus_classes import Generator, Planted, ngrams
from dirty_corpus_files import write_broken, write_documents
from dirty_corpus_text import PHRASES

SHARES = {
    "exact_duplicate": 0.08,
    "near_duplicate": 0.12,
    "foreign": 0.08,
    "html": 0.06,
    "personal_data": 0.06,
    "mojibake": 0.03,
    "boilerplate": 0.05,
    "spam": 0.03,
    "contaminated": 0.01,
}
"""Of the documents; the rest is clean."""

_PAGES_A_SITE = 50
_MOST_COMPARED = 1000
_NUM_ITEMS = 300
_ITEMS_LEFT_OUT = 60
"""Items that no document has: a report must not list them."""

_TASK = """task: quiz
dataset_path: json
dataset_kwargs:
  data_files:
    test: quiz.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question.strip()}}\\nAnswer:"
doc_to_target: answer
"""


def make_documents(generator: Generator, count: int) -> tuple[list[Planted], list[dict[str, str]]]:
    """All documents in a random order, and the evaluation items.

    Args:
        generator: Source of everything.
        count: Documents.
    """
    counts = {kind: round(share * count) for kind, share in SHARES.items()}
    num_clean = count - sum(counts.values())
    documents = [Planted(generator.clean(), "clean", name=f"clean-{n:06d}") for n in range(num_clean)]
    originals = generator.draw.sample(documents, counts["exact_duplicate"] + counts["near_duplicate"])
    items = generator.evaluation_items(_NUM_ITEMS)
    planted = [generator.exact_duplicate(each) for each in originals[: counts["exact_duplicate"]]]
    planted += [generator.near_duplicate(each) for each in originals[counts["exact_duplicate"] :]]
    planted += [generator.foreign() for _ in range(counts["foreign"])]
    planted += [generator.page() for _ in range(counts["html"])]
    planted += [generator.personal_data() for _ in range(counts["personal_data"])]
    planted += [generator.mojibake() for _ in range(counts["mojibake"])]
    for start in range(0, counts["boilerplate"], _PAGES_A_SITE):
        planted += list(generator.site(min(_PAGES_A_SITE, counts["boilerplate"] - start)))
    planted += [generator.spam() for _ in range(counts["spam"])]
    used = items[: _NUM_ITEMS - _ITEMS_LEFT_OUT]
    planted += [generator.contaminated(used[n % len(used)]) for n in range(counts["contaminated"])]
    numbers: Counter[str] = Counter()
    for document in planted:
        document.name = f"{document.kind}-{numbers[document.kind]:06d}"
        numbers[document.kind] += 1
    documents += planted
    generator.draw.shuffle(documents)
    return documents, items


def most_shared(texts: Sequence[str]) -> float:
    """The greatest share of a text's 5-grams that other texts have: none is more alike to any other.

    Args:
        texts: Many.
    """
    owners: dict[int, int] = {}
    shared: Counter[int] = Counter()
    sizes = []
    for number, text in enumerate(texts):
        found = ngrams(text)
        sizes.append(len(found))
        for ngram in found:
            key = hash(ngram)
            owner = owners.setdefault(key, number)
            if owner != number:
                shared[number] += 1
                if owner >= 0:
                    shared[owner] += 1
                    owners[key] = -1  # its first owner is counted once
    return max(shared[number] / max(size, 1) for number, size in enumerate(sizes))


def most_alike(texts: Sequence[str]) -> float:
    """The greatest Jaccard similarity over 5-grams of any two of the first thousand texts.

    Args:
        texts: Of few words, so that each 5-gram occurs in many.
    """
    sets = [ngrams(text) for text in texts[:_MOST_COMPARED]]
    columns = {ngram: number for number, ngram in enumerate(set().union(*sets))}
    rows = np.zeros((len(sets), len(columns)), dtype=np.float32)
    for row, found in zip(rows, sets, strict=True):
        row[[columns[ngram] for ngram in found]] = 1
    shared = rows @ rows.T
    sizes = np.diag(shared)
    similarity = shared / (sizes[:, None] + sizes - shared)
    np.fill_diagonal(similarity, 0)
    return float(similarity.max())


def check(documents: Sequence[Planted]) -> float:
    """A bound of how alike documents are that were not planted as duplicates.

    Args:
        documents: All of them.
    """
    bounds = [most_shared([each.text for each in documents if each.kind in ("clean", "personal_data")])]
    for language in PHRASES:
        texts = [each.truth.get("text", each.text) for each in documents if each.language == language]
        bounds.append(most_alike(texts))
    return max(bounds)


def main() -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long-line-mb", type=int, default=200)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    if arguments.out.exists():
        shutil.rmtree(arguments.out)
    generator = Generator(arguments.seed)
    documents, items = make_documents(generator, arguments.documents)
    where = write_documents(arguments.out / "corpus", documents)
    broken = write_broken(
        arguments.out / "broken", [generator.clean() for _ in range(16)], arguments.long_line_mb << 20
    )
    evaluation = arguments.out / "evaluation"
    evaluation.mkdir()
    (evaluation / "quiz.jsonl").write_text(
        "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8"
    )
    (evaluation / "quiz.yaml").write_text(_TASK)
    with open(arguments.out / "truth.jsonl", "w", encoding="utf-8") as stream:
        for document in documents:
            record = {"name": document.name, "class": document.kind, "file": where[document.name]}
            record |= {"language": document.language, **document.truth}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        for file, facts in broken.items():
            stream.write(json.dumps({"name": file, "class": "broken", "file": f"broken/{file}", **facts}) + "\n")
    classes = Counter(document.kind for document in documents)
    num_bytes = sum(len(document.text.encode()) for document in documents)
    alike = check(documents)
    print(f"{len(documents):,} documents, {num_bytes / 1e6:.1f} MB, in {time.perf_counter() - begin:.0f} s")
    print(", ".join(f"{kind} {count:,}" for kind, count in sorted(classes.items())))
    print(f"documents that are not planted as duplicates have a Jaccard similarity of at most {alike:.2f}")
    if alike >= 0.5:
        raise SystemExit("Documents that are not planted as duplicates are too much alike.")


if __name__ == "__main__":
    main()
