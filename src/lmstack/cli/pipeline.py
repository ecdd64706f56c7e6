"""`lmstack pipeline`: several stages, each from the one before, then an evaluation and a report."""

import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from rich.console import Console

from lmstack.cli.failures import ConfigError

REPORT = "report.html"
EVALUATION = "evaluation.json"
_DONE = ".pipeline"
_REFERENCE = re.compile(r"@(\w+)")


@dataclass
class StageConfig:
    """One training run of a pipeline.

    Attributes:
        fit: The training config.
        overrides: Changes to it. `@name` stands for the folder of another stage's run.
        after: Stage that this one starts from; it takes this one's place where this one is skipped.
        use: An existing run, checkpoint or model folder to use instead of training; null trains.
        skip: Leave the stage out: whoever refers to it gets the stage named by `after`.
    """

    fit: str | None = None
    overrides: list[str] = field(default_factory=list)
    after: str | None = None
    use: str | None = None
    skip: bool = False


@dataclass
class EvaluationConfig:
    """Answers to held-out prompts, compared from stage to stage.

    Attributes:
        prompts: File of prompts that no stage has trained on.
        models: Stages whose models answer, in the order in which they are compared.
        reward_model: Stage whose reward model judges.
        chat_template: As `data.chat_template`; null takes the one saved with the last model.
        max_new_tokens: Longest answer in tokens.
        temperature: Of sampling; 0 is greedy.
        num_prompts: At most so many.
    """

    prompts: str
    models: list[str]
    reward_model: str
    chat_template: str | None = None
    max_new_tokens: int = 64
    temperature: float = 0.7
    num_prompts: int = 200


def pipeline(
    *,
    output: str,
    stages: dict[str, StageConfig],
    prepare: list[str] | None = None,
    evaluate: EvaluationConfig | None = None,
    title: str = "A pipeline of stages",
    about: str = "",
) -> None:
    """Run stages one after the other, each from the one before; then evaluate, and write one HTML report.

    The same command goes on where it was stopped: finished stages are not repeated, an unfinished one resumes from its
    last checkpoint. `stages.sft.use=runs/mine` takes an existing run, `stages.sft.skip=true` leaves one out.

    Args:
        output: Folder of the pipeline; each stage's run is a folder in it.
        stages: Training runs by name, in order.
        prepare: lmstack commands to run first, such as `data build --config conf/corpus/stdlib.yaml`.
        evaluate: What to compare at the end; null compares nothing.
        title: Of the report.
        about: What was trained on what: a sentence for the report.
    """
    runner = _Runner(Path(output), stages)
    runner.check()
    runner.folder.mkdir(parents=True, exist_ok=True)
    for number, command in enumerate(prepare or []):
        runner.run(f"prepare-{number}", shlex.split(command))
    for name in stages:
        runner.train(name)
    evaluation = runner.evaluate(evaluate) if evaluate is not None else None
    runner.report(title, about, evaluation)


class _Runner:
    def __init__(self, folder: Path, stages: dict[str, StageConfig]) -> None:
        self.folder = folder
        self.stages = stages
        self.console = Console(highlight=False)

    def check(self) -> None:
        """Refuse what cannot run before anything has."""
        for name, stage in self.stages.items():
            where = f"stages.{name}"
            if stage.after is not None and stage.after not in self.stages:
                raise ConfigError(f"{where}.after={stage.after}: no such stage. Stages: {', '.join(self.stages)}.")
            if stage.use is not None and not Path(stage.use).exists():
                raise ConfigError(f"{where}.use={stage.use}: there is no such folder. Give a run, or null to train.")
            if stage.use is None and not stage.skip and (stage.fit is None or not Path(stage.fit).is_file()):
                raise ConfigError(f"{where}.fit={stage.fit}: there is no such config. Give one, or use or skip.")
            for reference in _REFERENCE.findall(" ".join(stage.overrides)):
                if reference not in self.stages:
                    raise ConfigError(f"{where}.overrides: no stage @{reference}. Stages: {', '.join(self.stages)}.")

    def run_of(self, name: str) -> str:
        """The folder that stands for a stage."""
        stage = self.stages[name]
        if stage.use is not None:
            return stage.use
        if stage.skip:
            if stage.after is None:
                raise ConfigError(f"stages.{name}.skip: another stage needs it, and it names no stage before it.")
            return self.run_of(stage.after)
        return str(self.folder / name)

    def train(self, name: str) -> None:
        """One stage, unless it is done, skipped or replaced."""
        stage = self.stages[name]
        if stage.use is not None or stage.skip:
            self.console.print(f"── {name}: {f'uses {stage.use}' if stage.use else 'skipped'}", style="bold")
            return
        overrides = [_REFERENCE.sub(lambda match: self.run_of(match[1]), text) for text in stage.overrides]
        folder = f"trainer.default_root_dir={self.folder / name}"
        self.run(name, ["fit", "--config", str(stage.fit), *overrides, folder, "ckpt_path=last"])

    def run(self, name: str, command: list[str]) -> None:
        """A command in a process of its own; its time adds up over interruptions."""
        marker = self.folder / _DONE / f"{name}.json"
        fresh: dict[str, Any] = {"seconds": 0.0, "done": False}
        known: dict[str, Any] = json.loads(marker.read_text()) if marker.is_file() else fresh
        if known["done"] and known["command"] == command:
            self.console.print(f"── {name}: done", style="bold")
            return
        if known["done"]:
            raise ConfigError(
                f"{name} is finished with other settings ({shlex.join(known['command'])}). Choose another output, or "
                f"remove {marker} and {self.folder / name} to run it again."
            )
        self.console.print(f"── {name}: lmstack {shlex.join(command)}", style="bold")
        started, status = time.monotonic(), 1
        try:
            status = subprocess.run([sys.executable, "-m", "lmstack", *command], check=False).returncode
        finally:
            seconds = known["seconds"] + time.monotonic() - started
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text(json.dumps({"command": command, "seconds": seconds, "done": status == 0}))
        if status:
            self.console.print(f"{name} ended with status {status}. The same command goes on from here.")
            sys.exit(status)

    def evaluate(self, config: EvaluationConfig) -> dict[str, Any]:
        """Answers and their comparison, written once."""
        from lmstack.evaluation.chain import evaluate_chain

        path = self.folder / EVALUATION
        models = {name: self.run_of(name) for name in config.models if not self.stages[name].skip}
        if path.is_file():
            known: dict[str, Any] = json.loads(path.read_text())
            if known["folders"] == models:
                return known
        self.console.print("── evaluation", style="bold")
        result = evaluate_chain(
            models,
            self.run_of(config.reward_model),
            config.prompts,
            chat_template=config.chat_template,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            num_prompts=config.num_prompts,
        )
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False))
        return result

    def report(self, title: str, about: str, evaluation: dict[str, Any] | None) -> None:
        """The page."""
        from lmstack.reports.pipeline_report import StageRun, pipeline_report

        runs = []
        for name, stage in self.stages.items():
            if stage.skip:
                continue
            folder, marker = Path(self.run_of(name)), self.folder / _DONE / f"{name}.json"
            config = folder / "config.yaml"
            kind = yaml.safe_load(config.read_text())["stage"] if config.is_file() else "model"
            seconds = json.loads(marker.read_text())["seconds"] if marker.is_file() else None
            runs.append(StageRun(name, str(kind), folder, seconds))
        path = self.folder / REPORT
        path.write_text(pipeline_report(title, about, runs, evaluation), encoding="utf-8")
        self.console.print(f"report: {path}")
