"""Split reviews; train the reward's and the judge's classifier on different halves; write text and prompts.

python experiments/002_sentiment/prepare.py en path/to/rt-polarity.pos path/to/rt-polarity.neg
python experiments/002_sentiment/prepare.py zh path/to/ChnSentiCorp_htl.csv
"""

import csv
import hashlib
import json
import sys
from pathlib import Path

import torch
from classifier import DATA, Classifier

from lmstack.prep.build import build_corpus
from lmstack.tokenization import train_bpe

HELD_OUT, REWARD_HALF = 0.12, 0.56  # shares of the hash: held out, then the reward's half, then the judge's
PREFIX = {"en": 4, "zh": 6}  # words, characters
VOCAB_SIZE = {"en": 4096, "zh": 4096}


def read_reviews(language: str, paths: list[str]) -> list[tuple[str, int]]:
    """Text and whether it is positive; each text once."""
    if language == "zh":
        with open(paths[0], encoding="utf-8", newline="") as file:
            rows = [(row["review"], int(row["label"])) for row in csv.DictReader(file)]
    else:
        lines = [Path(path).read_text(encoding="utf-8", errors="replace").splitlines() for path in paths]
        rows = [(line, label) for label, part in zip((1, 0), lines, strict=True) for line in part]
    return list({text.strip(): (text.strip(), label) for text, label in rows if text.strip()}.values())


def place(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def prefix(text: str, language: str) -> str:
    return " ".join(text.split()[: PREFIX["en"]]) if language == "en" else text[: PREFIX["zh"]]


def write_prompts(path: Path, texts: list[str], language: str) -> None:
    prompts = sorted({prefix(text, language) for text in texts})
    path.write_text("".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in prompts), encoding="utf-8")
    print(f"{path}: {len(prompts)} prompts")


if __name__ == "__main__":
    language, *paths = sys.argv[1:]
    folder = DATA / language
    folder.mkdir(parents=True, exist_ok=True)
    reviews = read_reviews(language, paths)
    held_out = [r for r in reviews if place(r[0]) < HELD_OUT]
    halves = {
        "reward": [r for r in reviews if HELD_OUT <= place(r[0]) < REWARD_HALF],
        "judge": [r for r in reviews if place(r[0]) >= REWARD_HALF],
    }
    wanted = torch.tensor([label for _, label in held_out])
    for name, half in halves.items():
        model = Classifier.train([text for text, _ in half], [label for _, label in half], language)
        right = (model.log_odds([text for text, _ in held_out]) > 0).long() == wanted
        print(
            f"{language} {name}: {len(half)} reviews, accuracy on {len(held_out)} held out {right.float().mean():.3f}"
        )
        torch.save({"vocabulary": model.vocabulary, "weight": model.weight}, folder / f"{name}.pt")
    training = [text for half in halves.values() for text, _ in half]
    for name, texts in (("train", training), ("validation", [text for text, _ in held_out])):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    write_prompts(folder / "prompts.jsonl", training, language)
    seen = {prefix(text, language) for text in training}
    unseen = [text for text, _ in held_out if prefix(text, language) not in seen]
    write_prompts(folder / "held_out_prompts.jsonl", unseen, language)
    train_bpe(training, VOCAB_SIZE[language]).save(folder / "tokenizer")
    build_corpus(
        folder / "corpus",
        {"reviews": str(folder / "train.jsonl")},
        folder / "tokenizer",
        validation_sources={"reviews": str(folder / "validation.jsonl")},
        overwrite=True,
    )
