"""The report shows what the runs wrote, and nothing breaks when something is missing."""

import json
from html.parser import HTMLParser
from pathlib import Path

from lmstack.reports.pipeline_report import StageRun, pipeline_report

EVALUATION = {
    "num_prompts": 2,
    "temperature": 0.7,
    "prompts": [{"prompt": "What is <b>?", "answer": "a tag"}, {"prompt": "And?", "answer": "no"}],
    "models": {
        "sft": {
            "reward": -0.5, "rule": 0.25, "finished": 1.0, "length": 5.0, "distinct_2": 0.5,
            "answers": ["one & two", "three"], "wins_over_previous": None, "rule_wins_over_previous": None,
        },
        "ppo": {
            "reward": 0.75, "rule": 0.3, "finished": 1.0, "length": 6.0, "distinct_2": 0.4, "answers": ["x", "y"],
            "wins_over_previous": {"rate": 0.75, "low": 0.6, "high": 0.9, "num_prompts": 2},
            "rule_wins_over_previous": {"rate": 0.5, "low": 0.1, "high": 0.9, "num_prompts": 2},
        },
    },
}  # fmt: skip


class Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def text_of(page: str) -> str:
    parser = Text()
    parser.feed(page)
    return parser.text


def run(folder: Path, name: str, rows: list[dict[str, float]]) -> Path:
    path = folder / name
    path.mkdir()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(columns), *(",".join(str(row.get(c, "")) for c in columns) for row in rows)]
    (path / "metrics.csv").write_text("\n".join(lines) + "\n")
    return path


def test_the_page_says_what_the_runs_say(tmp_path: Path) -> None:
    sft = run(
        tmp_path, "sft", [{"step": 10, "train/loss": 2.0, "train/tokens_seen": 640}, {"step": 20, "val/loss": 1.5}]
    )
    rm = run(tmp_path, "rm", [{"step": 10, "val/accuracy": 0.8, "val/longer_wins_accuracy": 0.5}])
    bins = [{"lower": 0.5, "upper": 0.55, "num_pairs": 10, "confidence": 0.52, "accuracy": 0.6}]
    lengths = [{"tokens": "0", "num_pairs": 10, "accuracy": 0.6}, {"tokens": "more", "num_pairs": 0, "accuracy": None}]
    scores = {"num_answers": 4, "mean": 0.0, "std": 1.0, "edges": [-1.0, 0.0, 1.0], "counts": [0, 2, 2, 0]}
    report = {
        "num_pairs": 10, "accuracy": 0.6, "longer_wins_accuracy": 0.5, "expected_calibration_error": 0.08,
        "reliability": bins, "by_length_difference": lengths, "scores": scores,
    }  # fmt: skip
    (rm / "reward_validation.json").write_text(json.dumps(report))
    ppo = run(tmp_path, "ppo", [{"step": 16, "reward/total": 0.1, "kl/reference": 0.5, "val/reward": 0.2}])
    stages = [
        StageRun("sft", "sft", sft, 83.0),
        StageRun("rm", "reward_model", rm, None),
        StageRun("ppo", "ppo", ppo, 5.0),
    ]
    page = pipeline_report("The title", "The lead.", stages, EVALUATION)
    text = text_of(page)
    for part in ("The title", "The lead.", "1:23", "640", "1.500", "60.0%", "50.0%", "0.080", "75% (60% to 90%)"):
        assert part in text, part
    assert "What is <b>?" in text
    assert "one & two" in text
    assert "<b>?" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_run_without_metrics_is_no_obstacle(tmp_path: Path) -> None:
    page = pipeline_report("t", "l", [StageRun("base", "model", tmp_path, None)], None)
    assert "base" in text_of(page)
    assert "no data" in page
