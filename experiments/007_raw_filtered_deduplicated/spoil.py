"""Spoil documents as the web does: few documents many times over, and pages without worth. Some are held out, clean.

python experiments/007_raw_filtered_deduplicated/spoil.py data/three_languages/documents data/spoilt

Writes <source>.jsonl in train/ and in held_out/. Everything follows from the seed.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

SOURCES = ("english", "chinese", "code")
CLEAN_BYTES = 1_400_000  # of each source
HELD_OUT_BYTES = 80_000
COPIED, COPIES = 0.05, 14  # 5 % of the documents have 14 copies on average: two in five of clean and copied bytes
WORTHLESS = 0.25  # of all bytes


def main(documents: Path, output: Path, seed: int) -> None:
    draw = random.Random(seed)
    kept: list[dict[str, str]] = []
    for source in SOURCES:
        lines = (documents / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in draw.sample(lines, len(lines))]
        held_out = take(texts, HELD_OUT_BYTES)
        write(output / "held_out" / f"{source}.jsonl", [{"text": text} for text in held_out])
        kept += [{"source": source, "class": "clean", "text": text} for text in take(texts, CLEAN_BYTES)]
    originals = draw.sample(kept, round(COPIED * len(kept)))
    kept += [copy(draw, each) for each in originals for _ in range(draw.randint(1, 2 * COPIES - 1))]
    words = " ".join(record["text"] for record in kept if record["text"].isascii()).split()
    worthless_bytes = size(kept) * WORTHLESS / (1 - WORTHLESS)
    while worthless_bytes > 0:
        kept.append(worthless(draw, words))
        worthless_bytes -= size(kept[-1:])
    draw.shuffle(kept)
    for source in SOURCES:
        write(output / "train" / f"{source}.jsonl", [record for record in kept if record["source"] == source])
    total = size(kept)
    for kind, count in Counter(record["class"] for record in kept).items():
        own = size([record for record in kept if record["class"] == kind])
        print(f"{kind:12} {count:6,} documents, {own / 1e6:5.1f} MB, {own / total:.0%}")


def take(texts: list[str], num_bytes: int) -> list[str]:
    """Texts from the end of the list, which are then gone from it, until there are so many bytes."""
    taken = []
    while texts and num_bytes > 0:
        taken.append(texts.pop())
        num_bytes -= len(taken[-1].encode())
    return taken


def copy(draw: random.Random, original: dict[str, str]) -> dict[str, str]:
    """Half of the copies are exact; the others lack a stretch of up to a tenth."""
    if draw.random() < 0.5:
        return original | {"class": "exact copy"}
    text = original["text"]
    length = draw.randint(1, max(1, len(text) // 10))
    start = draw.randrange(max(1, len(text) - length))
    return original | {"class": "near copy", "text": text[:start] + text[start + length :]}


def worthless(draw: random.Random, words: list[str]) -> dict[str, str]:
    """What no one would read: some of it that filters know, and words in disorder, which they do not."""
    kind = draw.choice(["keywords", "repeated line", "figures", "bytes", "menu", "words in disorder"])
    if kind == "keywords":
        few = draw.sample(words, 8)
        text = " | ".join(draw.choice(few) for _ in range(400))
    elif kind == "repeated line":
        text = (" ".join(draw.sample(words, 15)) + "\n") * 30
    elif kind == "figures":
        text = "\n".join(" ".join(f"{draw.random() * 1000:.2f}" for _ in range(8)) for _ in range(50))
    elif kind == "bytes":
        text = "\n".join(draw.randbytes(32).hex() for _ in range(40))
    elif kind == "menu":
        text = "\n".join(f"> {' '.join(draw.sample(words, draw.randint(1, 3)))} ..." for _ in range(120))
    else:
        text = " ".join(draw.sample(words, 400))
    return {"source": draw.choice(SOURCES), "class": kind, "text": text}


def size(records: list[dict[str, str]]) -> int:
    return sum(len(record["text"].encode()) for record in records)


def write(file: Path, records: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.documents, arguments.output, arguments.seed)
