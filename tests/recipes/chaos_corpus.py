"""Kill the preparation of a corpus within every stage and every step of it, and see whether it ends as if untouched.

    python tests/recipes/chaos_corpus.py --kills 120 --seed 7

Each life is `lmstack data prepare` in a process group forked from a process that has imported everything. It says
which step it begins, and ends at a random moment of the time that the step took undisturbed: by a timer of its own, by
kill -9 of the whole group or of the parent alone, by SIGTERM or Ctrl-C; with one process or with two. The next life
goes on with what is there. In the end every file has to equal that of a preparation that nobody touched
(`corpus_runs.outcome` says what may differ), and no step may have gone unharmed.
"""

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from chaos import PATIENCE, Life, fork  # which knows where the other files of the tests are

COMMAND = ["data", "prepare", "--config", "conf/corpus.yaml"]
STEPS = Path("steps.log")
TIMER = "its own timer"
WAYS = {
    TIMER: -signal.SIGALRM,  # which nobody handles: the kernel ends the process at once, to the microsecond
    "kill -9": -signal.SIGKILL,
    "kill -9 of the parent": -signal.SIGKILL,
    "sigterm": -signal.SIGTERM,
    "ctrl-c": 130,
}
"""With the exit status of each."""
TIMERS: dict[str, float] = {}
"""Seconds after which the process ends, by the step that it has begun."""
TWO_WORKERS_PROB = 0.1
START_OF_WORKERS = 3.0
"""Seconds in which two processes are started and do a little of the step."""


class Chaos:
    """Kills preparations of one corpus.

    Args:
        randomness: Draws the moments and the ways.
        kills: How often.
        all_steps: Go on until every step was hit.
        command: What is killed.
    """

    def __init__(self, randomness: random.Random, kills: int, all_steps: bool, command: list[str]) -> None:
        self.random, self.kills, self.all_steps, self.command = randomness, kills, all_steps, command
        self.hits: Counter[str] = Counter()
        self.ways: Counter[str] = Counter()
        self.lives = self.corpora = 0
        self.durations: dict[str, float] = {}

    def torment(self) -> None:
        """Corpora, one after the other, each killed at most once in every step."""
        expected = self._reference()
        while self.hits.total() < self.kills or (self.all_steps and self._untouched()):
            assert self.corpora < 30, f"never hit: {self._untouched()}"
            self._one_corpus()
            self.corpora += 1
            found = _outcome()
            differing = sorted(name for name in found | expected if found.get(name) != expected.get(name))
            assert not differing, f"corpus {self.corpora} differs in {differing}"

    def _untouched(self) -> set[str]:
        return set(self.durations) - set(self.hits)

    def _reference(self) -> dict[str, Any]:
        life = self._born(num_workers=1)
        life.wait(PATIENCE)
        assert life.status == 0, life.log.read_text()
        begun = [line.split(" ", 1) for line in STEPS.read_text().splitlines()]
        begins = [float(seconds) for seconds, _ in begun]
        self.durations = {
            name: after - before for (_, name), before, after in zip(begun, begins, [*begins[1:], begins[-1] + 0.01])
        }
        return _outcome()

    def _one_corpus(self) -> None:
        left = self.kills - self.hits.total()
        targets = list(self.durations)
        if not self.all_steps:
            targets = sorted(self.random.sample(targets, min(left, len(targets))), key=targets.index)
        elif left <= 0:
            targets = [step for step in targets if step not in self.hits]
        for target in targets:
            if self._one_life(target).status == 0:
                return
        life = self._born(num_workers=1)
        life.wait(PATIENCE)
        assert life.status == 0, life.log.read_text()

    def _one_life(self, target: str) -> Life:
        """A life that is ended in a step, or a little behind it."""
        num_workers = 2 if self.random.random() < TWO_WORKERS_PROB else 1
        is_urgent = self.corpora > 0 and target not in self.hits
        way = TIMER if is_urgent else self.random.choice([*WAYS, TIMER, TIMER])
        delay = self.random.uniform(0, self.durations[target] + START_OF_WORKERS * (num_workers - 1))
        if way == TIMER:
            TIMERS[target] = delay
        life = self._born(num_workers)
        if way != TIMER:
            life.wait(PATIENCE, until=partial(_is_at, target))
            life.wait(delay)
        self._kill(life, way)
        TIMERS.clear()
        return life

    def _born(self, num_workers: int) -> Life:
        STEPS.unlink(missing_ok=True)
        self.lives += 1
        return fork([*self.command, f"executor.num_workers={num_workers}"], Path(f"life.{self.lives}.log"))

    def _kill(self, life: Life, way: str) -> None:
        if way != TIMER and not life.is_over():
            number = {"sigterm": signal.SIGTERM, "ctrl-c": signal.SIGINT}.get(way, signal.SIGKILL)
            os.kill(life.pid, number) if way.endswith("parent") else os.killpg(life.pid, number)
        life.wait(PATIENCE)
        assert life.status in (0, WAYS[way]), f"{way}, exit status {life.status}:\n{life.log.read_text()}"
        if life.status != 0:
            self.hits[_step()] += 1
            self.ways[way] += 1


def _step() -> str:
    """The step that was begun last."""
    lines = STEPS.read_text().splitlines() if STEPS.exists() else []
    return lines[-1].split(" ", 1)[1] if lines else "start"


def _is_at(step: str) -> bool:
    return _step() == step


def _outcome() -> dict[str, Any]:
    """What the preparation wrote; taken away."""
    import corpus_runs

    found = corpus_runs.outcome(corpus_runs.OUTPUT)
    shutil.rmtree(corpus_runs.OUTPUT)
    return found


def announce_steps() -> None:
    """Have every step of a preparation write its name as it begins."""
    from lmstack.prep import build, plan, prepare

    command = importlib.import_module("lmstack.cli.prepare")
    plan._SMALLEST_PARTITION = 3000
    _announce(prepare, "make_way", lambda *_: "make way")
    _announce(prepare, "_run_step", lambda plan, step, *_: f"{plan.stages[step.stage].name}: {step.action}")
    _announce(
        command, "_write_report", lambda _plan, _results, manifest: f"report {'after' if manifest else 'before'} shards"
    )
    _announce(build, "_prepare", lambda *_: "prepare shards")
    _announce(build, "_run", lambda *_: "tokenize")
    _announce(build, "_finish", lambda *_: "manifest")


def _announce(module: Any, name: str, title: Callable[..., str]) -> None:
    function = getattr(module, name)

    def announced(*arguments: Any, **options: Any) -> Any:
        step = title(*arguments)
        with open(STEPS, "a") as stream:
            stream.write(f"{time.monotonic()} {step}\n")
        if delay := TIMERS.get(step):
            signal.setitimer(signal.ITIMER_REAL, delay)
        return function(*arguments, **options)

    setattr(module, name, announced)


def import_everything(with_models: bool) -> None:
    """What every life would load again."""
    import torch

    from lmstack.prep.language import identify

    torch.set_num_threads(1)
    for module in (
        "cli.compose",
        "cli.tool",
        "cli.explain",
        "cli.signatures",
        "models.checkpoint",
        "models.likelihood",
    ):
        importlib.import_module(f"lmstack.{module}")
    if with_models:
        importlib.import_module("torch._dynamo")  # which torch asks for as a model's weights are made
    for module in ("resiliparse.extract.html2text", "ftfy", "orjson", "zstandard", "jsonargparse", "hydra"):
        importlib.import_module(module)
    identify("loads its model", candidates=("en", "fr", "de"))
    announce_steps()


def main() -> int:
    """Torment the preparation, and say what happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=None, help="of the random moments; another one each time")
    parser.add_argument("--some-steps", action="store_true", help="do not go on until every step was hit")
    parser.add_argument("--leave-out", nargs="*", default=[], help="stages, such as perplexity, which loads a model")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    folder, began = Path(tempfile.mkdtemp(prefix="lmstack-chaos-corpus-")), time.monotonic()
    print(f"chaos: seed {seed}, in {folder}", flush=True)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(folder))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started this with Ctrl-C ignored
    import corpus_runs

    corpus_runs.make_project()
    import_everything(with_models="perplexity" not in arguments.leave_out)
    command = [*COMMAND, *(f"stages.{name}=null" for name in arguments.leave_out)]
    chaos = Chaos(random.Random(seed), arguments.kills, not arguments.some_steps, command)
    chaos.torment()
    for step in chaos.durations:
        print(f"  {step:28} {chaos.hits[step]:3} kills, {chaos.durations[step]:.2f} s undisturbed")
    seconds = time.monotonic() - began
    print(
        f"chaos: {chaos.hits.total()} kills in {len(chaos.hits)} of {len(chaos.durations)} steps, {dict(chaos.ways)}; "
        f"{chaos.corpora} corpora in {chaos.lives} lives, no file differs. {seconds:.0f} s, seed {seed}"
    )
    os.chdir("/")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
