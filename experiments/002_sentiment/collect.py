"""Let the judge, who saw none of the reward's reviews, read what each model writes: results.csv, samples.md, a plot.

python experiments/002_sentiment/collect.py
"""

import csv
import json
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import numpy as np
import torch
from classifier import DATA, Classifier, load

matplotlib.use("svg")
import matplotlib.pyplot as plt

from lmstack.data.batch import IGNORE_INDEX
from lmstack.evaluation.responses import Answer, answer_prompts
from lmstack.models import load_transformer
from lmstack.models.checkpoint import weights_folder
from lmstack.models.likelihood import response_log_probs
from lmstack.tokenization import ChatTemplate, Tokenizer

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
KL_COEF = 0.1
NUM_PROMPTS = 400


def divergence(run: str, base: str, prompts: list[list[int]], answers: list[Answer]) -> float:
    """KL(run || base) of an answer in nats, estimated on answers sampled from `run`."""
    totals = []
    models = [load_transformer(run), load_transformer(base)]
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.token_ids]])
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[0, len(prompt) - 1 : -1] = torch.tensor(answer.token_ids)
        with torch.no_grad():
            policy, reference = (
                response_log_probs(model, ids, labels, temperature=1.0, chunk_size=4096)[0].sum() for model in models
            )
        totals.append(float(policy - reference))
    return mean(totals)


def distinct(texts: list[str], language: str, n: int) -> float:
    """Different n-grams over all n-grams: of words, of characters where words have no spaces."""
    units = [text.split() if language == "en" else list(text) for text in texts]
    grams = [tuple(u[i : i + n]) for u in units for i in range(len(u) - n + 1)]
    return len(set(grams)) / len(grams)


def evaluate(run: str, base: str, language: str, judge: Classifier) -> tuple[dict[str, float], list[str]]:
    tokenizer = Tokenizer.load(weights_folder(run) / "tokenizer")
    template = ChatTemplate("plain")
    lines = (DATA / language / "held_out_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:NUM_PROMPTS]]
    prompts = [template.render_prompt([{"role": "user", "content": text}], tokenizer) for text in texts]
    answers = answer_prompts(run, tokenizer, prompts, template.end_ids(tokenizer), max_new_tokens=24, temperature=1.0)
    whole = [text + answer.text for text, answer in zip(texts, answers, strict=True)]
    row = {
        "positive_by_judge": float((judge.log_odds(whole) > 0).float().mean()),
        "positive_by_reward": float((load(language, "reward").log_odds(whole) > 0).float().mean()),
        "kl": divergence(run, base, prompts, answers) if run != base else 0.0,
        "distinct_1": distinct([a.text for a in answers], language, 1),
        "distinct_2": distinct([a.text for a in answers], language, 2),
        "length": mean(len(a.token_ids) for a in answers),
        "prompts": len(texts),
    }
    return row, [f"{text} ▸{answer.text}" for text, answer in zip(texts, answers, strict=True)]


def learning_curve(run: str) -> list[tuple[float, float]]:
    with (Path(run) / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("reward/positive")]
    return [(float(row["kl/reference"]) ** 0.5, float(row["reward/positive"])) for row in rows]


if __name__ == "__main__":
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    samples = ["# Samples, seed 1", "", "What is given, then ▸ what the model wrote."]
    with (HERE / "results.csv").open("w", newline="") as file:
        writer: Any = None
        for axis, language in zip(axes, ("en", "zh"), strict=True):
            judge, base = load(language, "judge"), f"runs/002_{language}_pretrain"
            runs = [(0, base), *((seed, f"runs/002_{language}_ppo_{KL_COEF}_{seed}") for seed in SEEDS)]
            for seed, run in runs:
                row, texts = evaluate(run, base, language, judge)
                named = {"language": language, "model": "ppo" if seed else "pretrained", "seed": seed or ""}
                named |= {k: round(v, 4) for k, v in row.items()}
                print(named)
                if writer is None:
                    writer = csv.DictWriter(file, list(named), lineterminator="\n")
                    writer.writeheader()
                writer.writerow(named)
                if seed <= 1:
                    samples += [
                        "",
                        f"## {language}, {named['model']}",
                        "",
                        *(f"- {' '.join(t.split())}" for t in texts[:8]),
                    ]
                if seed:
                    axis.plot(*zip(*learning_curve(run), strict=True), alpha=0.7, label=f"seed {seed}")
            axis.set(title={"en": "English", "zh": "Chinese"}[language], xlabel="√KL from the pretrained model")
        axes[0].set(ylabel="reward: log-odds of positive")
        axes[0].legend()
    figure.savefig(HERE / "figure.svg", bbox_inches="tight")
    (HERE / "samples.md").write_text("\n".join(samples) + "\n", encoding="utf-8")
