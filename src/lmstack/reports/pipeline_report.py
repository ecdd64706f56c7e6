"""The report of a pipeline: what every stage learnt, and what its answers gained over the stage before."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmstack.reports.page import figures, page, paragraph, table
from lmstack.reports.runs import column, read_run
from lmstack.reports.svg import Series, bars, chart

NUM_SAMPLES = 12


@dataclass(frozen=True)
class StageRun:
    """A stage of a pipeline that has run.

    Attributes:
        name: In the pipeline.
        kind: `causal_lm`, `sft`, `reward_model`, `ppo` and so on.
        folder: Of the run.
        seconds: It took; None where an existing run was used.
    """

    name: str
    kind: str
    folder: Path
    seconds: float | None


def pipeline_report(title: str, lead: str, stages: Sequence[StageRun], evaluation: dict[str, Any] | None) -> str:
    """The whole page.

    Args:
        title: Its heading.
        lead: What was trained on what, in a sentence.
        stages: In order.
        evaluation: What `evaluate_chain` wrote; None when nothing was evaluated.
    """
    sections = [("Stages", _stages(stages))]
    if evaluation is not None:
        sections.append(("Each stage against the one before", _wins(evaluation)))
    for stage in stages:
        rows = read_run(stage.folder)
        if stage.kind in ("ppo", "grpo"):
            sections.append((f"{stage.name}: reward and divergence", _policy(rows)))
        else:
            sections.append((f"{stage.name}: learning curve", _losses(rows)))
        if stage.kind == "reward_model":
            sections.append((f"{stage.name}: how far to trust it", _reward_model(stage.folder)))
    if evaluation is not None:
        sections.append(("Answers to held-out prompts", _samples(evaluation)))
    return page(title, lead, sections)


def _stages(stages: Sequence[StageRun]) -> str:
    rows = []
    for stage in stages:
        metrics = read_run(stage.folder)
        tokens = column(metrics, "train/tokens_seen")
        steps = int(metrics[-1]["step"]) if metrics else None
        last = {name: [value for _, value in column(metrics, name)][-1:] for name in ("val/loss", "val/reward")}
        seconds = None if stage.seconds is None else f"{int(stage.seconds) // 60}:{int(stage.seconds) % 60:02d}"
        num_tokens = int(tokens[-1][1]) if tokens else None
        rows.append(
            [stage.name, stage.kind, steps, num_tokens, seconds, *(last[n][0] if last[n] else None for n in last)]
        )
    return table(
        ["stage", "objective", "optimizer steps", "tokens", "time (min:s)", "validation loss", "held-out reward"], rows
    )


def _losses(rows: list[dict[str, str]]) -> str:
    names = [("train", "train/loss"), ("validation", "val/loss")]
    series = [Series(label, column(rows, name)) for label, name in names]
    charts = [chart("Loss", series, x_label="optimizer step", y_label="loss (nats)")]
    accuracy = [
        Series("reward model", column(rows, "val/accuracy")),
        Series("longer wins", column(rows, "val/longer_wins_accuracy"), "dashes"),
    ]
    if accuracy[0].points:
        charts.append(chart("Held-out accuracy", accuracy, x_label="optimizer step", y_label="share of pairs"))
    return figures(*charts)


def _reward_model(folder: Path) -> str:
    path = folder / "reward_validation.json"
    if not path.is_file():
        return ""
    report = json.loads(path.read_text())
    reliability = [(b["confidence"], b["accuracy"]) for b in report["reliability"] if b["num_pairs"]]
    scores = report["scores"]
    centers = [(low + high) / 2 for low, high in zip(scores["edges"], scores["edges"][1:], strict=False)]
    by_length = [(b["tokens"], b["accuracy"]) for b in report["by_length_difference"] if b["num_pairs"]]
    sentence = (
        f"On {report['num_pairs']:,} held-out pairs it ranks {report['accuracy']:.1%} as stated; the rule that the "
        f"longer answer wins gets {report['longer_wins_accuracy']:.1%}. Expected calibration error "
        f"{report['expected_calibration_error']:.3f}."
    )
    return paragraph(sentence) + figures(
        chart(
            "Calibration",
            [Series("measured", reliability), Series("ideal", [(0.5, 0.5), (1.0, 1.0)], "dashes")],
            x_label="confidence",
            y_label="accuracy",
        ),
        chart(
            "Scores of held-out answers",
            [Series("answers", list(zip(centers, map(float, scores["counts"][1:-1]), strict=False)))],
            x_label="score",
            y_label="answers",
        ),
        bars("Accuracy by length of better less worse (tokens)", by_length, y_label="accuracy"),
    )


def _policy(rows: list[dict[str, str]]) -> str:
    reward, kl = column(rows, "reward/total"), column(rows, "kl/reference")
    frontier = [(max(k, 0.0) ** 0.5, r) for (_, k), (_, r) in zip(kl, reward, strict=False)]
    held_out = [
        (max(k, 0.0) ** 0.5, r)
        for (_, k), (_, r) in zip(column(rows, "val/kl/reference"), column(rows, "val/reward"), strict=False)
    ]
    return figures(
        chart(
            "Reward",
            [Series("rollouts", reward), Series("held out", column(rows, "val/reward"), "dashes")],
            x_label="optimizer step",
            y_label="reward",
        ),
        chart(
            "Reward against divergence",
            [Series("rollouts", frontier, "dots"), Series("held out", held_out)],
            x_label="√ KL(policy ‖ reference), nats",
            y_label="reward",
        ),
        chart("KL to the reference", [Series("kl", kl)], x_label="optimizer step", y_label="nats a response"),
        chart(
            "Length of responses",
            [Series("tokens", column(rows, "rollout/length"))],
            x_label="optimizer step",
            y_label="tokens",
            y_from_zero=True,
        ),
    )


def _wins(evaluation: dict[str, Any]) -> str:
    models = evaluation["models"]
    rows = []
    for name, model in models.items():
        wins = model["wins_over_previous"]
        rate = f"{wins['rate']:.0%} ({wins['low']:.0%} to {wins['high']:.0%})" if wins else "–"
        by_rule = model["rule_wins_over_previous"]
        rule_rate = f"{by_rule['rate']:.0%} ({by_rule['low']:.0%} to {by_rule['high']:.0%})" if by_rule else "–"
        rows.append(
            [
                name,
                model["reward"],
                rate,
                model["rule"],
                rule_rate,
                model["finished"],
                model["length"],
                model["distinct_2"],
            ]
        )
    note = (
        f"{evaluation['num_prompts']} held-out prompts, one answer each, temperature {evaluation['temperature']}. A "
        "win rate counts prompts on which a stage's answer scores above that of the stage before, ties half, with the "
        "95 % interval. The reward model was trained for the last stage to please it; the rule was not: it is the "
        "overlap of words with the answer on record (F1)."
    )
    columns = ["stage", "reward", "wins by reward", "word F1", "wins by rule", "ended", "tokens", "distinct-2"]
    heights = [(name, model["reward"]) for name, model in models.items()]
    rule = [(name, model["rule"]) for name, model in models.items() if model["rule"] is not None]
    charts = [bars("Mean reward of held-out answers", heights, y_label="reward")]
    charts += [bars("Overlap with the answer on record", rule, y_label="word F1")] if rule else []
    return paragraph(note) + table(columns, rows) + figures(*charts)


def _samples(evaluation: dict[str, Any]) -> str:
    models = evaluation["models"]
    rows = [
        [prompt["prompt"], *(models[name]["answers"][i] for name in models), prompt.get("answer")]
        for i, prompt in enumerate(evaluation["prompts"][:NUM_SAMPLES])
    ]
    return table(["prompt", *models, "on record"], rows)
