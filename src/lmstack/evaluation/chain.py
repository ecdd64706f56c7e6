"""A chain of models, each trained from the one before: do their answers get better?"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lmstack.evaluation.responses import answer_overlap, answer_prompts, distinct_ngrams, score_answers, win_rate
from lmstack.models.checkpoint import weights_folder
from lmstack.models.heads import load_scorer
from lmstack.tokenization import ChatTemplate, Tokenizer


def evaluate_chain(
    models: Mapping[str, str],
    reward_model: str,
    prompts: str,
    *,
    chat_template: str | None,
    max_new_tokens: int,
    temperature: float,
    num_prompts: int,
) -> dict[str, Any]:
    """Answers of every model to the same prompts, their scores, and win rates over the model before.

    Args:
        models: Folders by name, in the order of comparison.
        reward_model: Run of stage `reward_model`.
        prompts: JSONL of prompts with `messages`; an `answer` where there is one to compare with.
        chat_template: As for `ChatTemplate.find`; None takes the one saved with the last model.
        max_new_tokens: Longest answer in tokens.
        temperature: Of sampling.
        num_prompts: At most so many.

    Returns:
        Plain values, ready for JSON.
    """
    tokenizer = Tokenizer.load(weights_folder(list(models.values())[-1]) / "tokenizer")
    template = ChatTemplate.find(chat_template, tokenizer)
    rows = _read_prompts(prompts)[:num_prompts]
    ids = [template.render_prompt(row["messages"], tokenizer) for row in rows]
    scorer = load_scorer(reward_model)
    has_answers = all("answer" in row for row in rows)
    results: dict[str, Any] = {}
    scores: dict[str, Float[np.ndarray, " N"]] = {}
    overlaps: dict[str, Float[np.ndarray, " N"]] = {}
    for name, folder in models.items():
        answers = answer_prompts(
            folder, tokenizer, ids, template.end_ids(tokenizer), max_new_tokens=max_new_tokens, temperature=temperature
        )
        texts = [answer.text for answer in answers]
        scores[name] = score_answers(scorer, ids, answers)
        if has_answers:
            pairs = zip(texts, rows, strict=True)
            overlaps[name] = np.array([answer_overlap(text, row) for text, row in pairs])
        results[name] = {
            "reward": float(scores[name].mean()),
            "rule": float(overlaps[name].mean()) if has_answers else None,
            "finished": float(np.mean([answer.is_finished for answer in answers])),
            "length": float(np.mean([len(answer.token_ids) for answer in answers])),
            "distinct_2": distinct_ngrams(texts, 2),
            "answers": texts,
        }
    names = list(models)
    for name, before in zip(names, [None, *names[:-1]], strict=True):
        results[name] |= {"wins_over_previous": None, "rule_wins_over_previous": None}
        if before is not None:
            results[name]["wins_over_previous"] = asdict(win_rate(scores[name], scores[before]))
            if has_answers:
                results[name]["rule_wins_over_previous"] = asdict(win_rate(overlaps[name], overlaps[before]))
    return {
        "folders": dict(models),
        "num_prompts": len(rows),
        "temperature": temperature,
        "prompts": [{"prompt": row["messages"][-1]["content"], "answer": row.get("answer")} for row in rows],
        "models": results,
    }


def _read_prompts(path: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        row: dict[str, Any] = json.loads(line)
        if "messages" not in row:
            raise ValueError(f"{path}, line {number}: no 'messages'. Give prompts as a list of messages.")
        rows.append(row)
    return rows
