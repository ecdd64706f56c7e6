"""Text, demonstrations, comparisons and prompts of real people, from files that are described in the README.

python experiments/003_real_data/prepare.py path/to/data
"""

import hashlib
import json
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

OUTPUT = Path("data/real")
HELD_OUT = 0.1
TEXT: dict[str, dict[str, str]] = {
    "web": {"paths": "text/en_web_wiki_demo/c4_demo.jsonl"},
    "encyclopedia": {"paths": "text/en_web_wiki_demo/wiki_demo.txt", "separator": "\n\n"},
    "articles": {"paths": "text/wikitext2_valid/valid.txt", "separator": "\n \n"},
    "stories": {"paths": "text/tinystories_2mb/tinystories_sample.txt", "separator": "<|endoftext|>"},
    "novels": {"paths": "text/english_novels/*.txt", "separator": "\n\n\n"},
    "speeches": {"paths": "text/en_speeches_and_udhr/inaugural/*.txt", "errors": "replace"},
}
LONGEST = 600  # characters of a demonstration: a small model with a short context
LONGEST_DIALOGUE = 750  # characters: earlier turns are left out until it fits
NUM_ALPACA = 12_000


def is_held_out(prompt: str) -> bool:
    return int.from_bytes(hashlib.sha256(prompt.strip().encode()).digest()[:8]) / 2**64 < HELD_OUT


def write(name: str, rows: list[dict[str, Any]]) -> None:
    path = OUTPUT / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows):,} rows")


def demonstrations(data: Path) -> list[dict[str, Any]]:
    rows = json.loads((data / "sft/stanford_alpaca_52k/alpaca_data.json").read_text())[:NUM_ALPACA]
    for name in ("sft/dolly_3k/dolly_3k.json", "sft/lima/lima.json"):
        rows += json.loads((data / name).read_text())
    rows = [{key: row[key] for key in ("instruction", "input", "output")} for row in rows if row["output"].strip()]
    return [row for row in rows if sum(map(len, row.values())) <= LONGEST and row["instruction"].strip()]


def opening(row: dict[str, Any]) -> str:
    """What the person says first."""
    text: str = row["text"][0]
    return text.split("\n\nAssistant:")[0].removeprefix("\n\nHuman:").strip()


def helpful(data: Path) -> dict[str, list[dict[str, Any]]]:
    """Pairs of dialogues, without what was said too long ago; split by what the person said first, as it was."""
    rows = json.loads((data / "preference/hh_helpful_2000/helpful.first2000.json").read_text())
    sides: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for row in rows:
        first = opening(row)
        turns = [re.split(r"\n\n(?=Human:)", text.strip()) for text in row["text"]]
        texts = ["\n\n" + "\n\n".join(t) for t in turns]
        while max(map(len, texts)) > LONGEST_DIALOGUE and min(map(len, turns)) > 1:
            turns = [t[1:] for t in turns]
            texts = ["\n\n" + "\n\n".join(t) for t in turns]
        has_answers = all(text.rpartition("Assistant:")[2].strip() for text in texts)
        is_one_prompt = len({text.rpartition("Assistant:")[0] for text in texts}) == 1
        if max(map(len, texts)) <= LONGEST_DIALOGUE and has_answers and is_one_prompt:
            record = {"text": texts, "score": row["score"]}
            sides["validation" if is_held_out(first) else "train"].append(record)
    seen = {opening(row) for row in sides["validation"]}
    sides["train"] = [row for row in sides["train"] if opening(row) not in seen]  # shortened, two may begin alike
    print(f"helpful: {sum(map(len, sides.values()))} of {len(rows)} pairs have one prompt and two answers, and fit")
    return sides


def questions(data: Path) -> dict[str, list[dict[str, Any]]]:
    """Four answers to a question. A score is the number of comparisons won, a tie being half a win."""
    rows = json.loads((data / "preference/qa_feedback_k4_human/dev_feedback.json").read_text())
    sides: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    num_pairs = num_kept = 0
    for row in rows:
        answers = [row[f"prediction {i}"] for i in range(1, 5)]
        scores = [0.0] * 4
        for (i, j), label in zip(combinations(range(4), 2), row["preference"], strict=True):
            scores[i] += {0: 0.5, 1: 1.0, 2: 0.0}[label]
            scores[j] += {0: 0.5, 1: 0.0, 2: 1.0}[label]
        for (i, j), label in zip(combinations(range(4), 2), row["preference"], strict=True):
            num_pairs += 1
            num_kept += label == (0 if scores[i] == scores[j] else 1 if scores[i] > scores[j] else 2)
        best = {}  # the same text twice: its better score
        for answer, score in zip(answers, scores, strict=True):
            if answer.strip():
                best[answer.strip()] = max(score, best.get(answer.strip(), 0.0))
        fits = len(row["question"]) + max(map(len, best)) <= LONGEST_DIALOGUE
        if fits and len(set(best.values())) > 1:
            record = {"prompt": row["question"], "answers": list(best), "scores": list(best.values())}
            sides["validation" if is_held_out(row["question"]) else "train"].append(record)
    print(
        f"questions: {num_kept} of {num_pairs} labels of pairs are what the scores say; the others are not transitive"
    )
    return sides


def prompts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a person asked first."""
    texts = [row["prompt"] if "prompt" in row else opening(row) for row in rows]
    return [{"messages": [{"role": "user", "content": t}]} for t in dict.fromkeys(map(str.strip, texts))]


if __name__ == "__main__":
    data = Path(sys.argv[1])
    OUTPUT.mkdir(parents=True, exist_ok=True)
    sources = {name: source | {"paths": str((data / source["paths"]).absolute())} for name, source in TEXT.items()}
    # JSON is YAML: the part that the tokenizer's and the corpus's config have in common.
    (OUTPUT / "sources.yaml").write_text(json.dumps({"sources": sources, "validation_fraction": 0.01}))
    write("demonstrations", demonstrations(data))
    sides = {"helpful": helpful(data), "questions": questions(data)}
    for name, parts in sides.items():
        for side, rows in parts.items():
            write(f"{name}_{side}", rows)
    for side in ("train", "validation"):
        write(f"prompts_{side}", prompts([row for parts in sides.values() for row in parts[side]]))
