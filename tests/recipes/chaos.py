"""Kill tiny runs at random moments, and see whether they end as if nothing had happened.

    python tests/recipes/chaos.py --kills 60 --seed 7

Each run is `lmstack fit ... ckpt_path=last` in a process forked from one that has imported everything, so that a life
costs a second and not five. A life ends by kill -9 while it starts, trains or writes a checkpoint, by SIGTERM, or by
both; now and then a checkpoint is damaged between two lives. The weights, the optimizer's and all other state, the
metrics and the samples of every step have to equal those of the run that nobody touched, bit for bit.
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
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"LMSTACK_RUN_ID": "chaos", "CUDA_VISIBLE_DEVICES": ""}

WAYS = ("anywhere", "training", "training", "saving", "saving", "sigterm", "sigterm then kill")
DAMAGES = ("truncated", "bit flipped", "file missing", "no manifest", "torn manifest")
PATIENCE = 300.0


@dataclass
class Life:
    """One process of a run.

    Attributes:
        pid: Of the process.
        log: What it says.
        born: When it was forked.
    """

    pid: int
    log: Path
    born: float
    status: int | None = None

    def is_over(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def wait(self, seconds: float, until: Any = lambda: False) -> bool:
        """Wait so long, or until something is true, or the life is over; whether it still lasts."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.is_over() and not until():
            time.sleep(min(0.001, max(0.0, end - time.monotonic())))
        return not self.is_over()

    def end(self, number: int) -> None:
        if not self.is_over():
            os.kill(self.pid, number)


@dataclass
class Tally:
    """What happened to one kind of run."""

    ways: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    while_saving: int = 0
    lives: int = 0
    runs: int = 0


def fork(words: list[str], log: Path) -> Life:
    """Start a command of lmstack in a copy of this process."""
    pid = os.fork()
    if pid:
        return Life(pid, log, time.monotonic())
    status = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = ["lmstack", *words]
        from lmstack.cli.main import main

        status = main(words)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Chaos:
    """Kills one kind of run until it was killed often enough.

    Args:
        name: Of the run.
        randomness: Draws the moments.
        kills: How often.
    """

    def __init__(self, name: str, randomness: random.Random, kills: int) -> None:
        self.name, self.random, self.kills = name, randomness, kills
        self.tally = Tally()
        self.start_seconds, self.step_seconds = 1.0, 0.1

    def reference(self) -> dict[str, Any]:
        """The run that nobody touches; measured, to know which moments there are."""
        import chaos_runs

        folder = Path("reference", self.name)
        life = fork(chaos_runs.command(self.name, str(folder)), Path(f"{self.name}.reference.log"))
        life.wait(PATIENCE, until=(folder / chaos_runs.ORDER).exists)
        self.start_seconds = time.monotonic() - life.born
        life.wait(PATIENCE)
        if life.status != 0:
            raise RuntimeError(f"{self.name} does not even run undisturbed:\n{life.log.read_text()}")
        found = chaos_runs.outcome(folder)
        self.step_seconds = (time.monotonic() - life.born - self.start_seconds) / len(found["order"])
        return found

    def torment(self) -> None:
        """Runs, one after the other, each killed until it ends by itself or has been killed enough."""
        import chaos_runs

        expected = self.reference()
        while sum(self.tally.ways.values()) < self.kills:
            folder = Path("runs", f"{self.name}_{self.tally.runs}")
            self._one_run(folder)
            self.tally.runs += 1
            if found := chaos_runs.first_difference(chaos_runs.outcome(folder), expected, self.name):
                raise AssertionError(f"{folder} did not end as {self.name} does: {found}")

    def _one_run(self, folder: Path) -> None:
        import chaos_runs

        words, damaged = chaos_runs.command(self.name, str(folder)), None
        for number in range(1000):
            log = Path(f"{folder.name}.{number}.log")
            life = fork(words, log)
            self.tally.lives += 1
            way = self.random.choice(WAYS)
            if sum(self.tally.ways.values()) < self.kills:
                self._kill(life, way, folder)
            life.wait(PATIENCE)
            text = log.read_text()
            if damaged is not None and "going on from" in text and damaged not in text:
                raise AssertionError(f"{log}: the damaged {damaged} is not named:\n{text}")
            if life.status == 0 and (folder / "checkpoints").is_dir() and self._is_finished(folder):
                return
            if life.status not in (-signal.SIGKILL, -signal.SIGTERM, 75):
                raise AssertionError(f"{log}: {way}, exit status {life.status}:\n{text}")
            damaged = self._damage(folder) if self.random.random() < 0.2 else None
        raise AssertionError(f"{folder} never ends")

    def _is_finished(self, folder: Path) -> bool:
        last = max(path.name for path in Path("reference", self.name, "checkpoints").glob("step-*"))
        return (folder / "checkpoints" / last).is_dir()

    def _kill(self, life: Life, way: str, folder: Path) -> None:
        """End a life in a way, at a moment drawn at random."""
        import chaos_runs

        order, window = folder / chaos_runs.ORDER, 5 * self.step_seconds
        taken = order.stat().st_size if order.exists() else 0

        def is_training() -> bool:
            return order.exists() and order.stat().st_size > taken

        if way == "anywhere" or (way == "sigterm" and self.random.random() < 0.5):
            life.wait(self.random.uniform(0, self.start_seconds + window))
        else:
            life.wait(PATIENCE, until=is_training)
            life.wait(self.random.uniform(0, window))
        if way == "saving":
            life.wait(PATIENCE, until=lambda: self._is_saving(folder))
            life.wait(self.random.uniform(0, 0.3 * self.step_seconds))
        if way.startswith("sigterm"):
            life.end(signal.SIGTERM)
            life.wait(PATIENCE if way == "sigterm" else self.random.uniform(0, 2 * self.step_seconds))
        if way != "sigterm":
            life.end(signal.SIGKILL)
        life.wait(PATIENCE)
        if life.status != 0:
            self.tally.ways[way] += 1
            self.tally.while_saving += life.status == -signal.SIGKILL and self._is_saving(folder)

    def _is_saving(self, folder: Path) -> bool:
        return any((folder / "checkpoints").glob(".partial-*"))

    def _damage(self, folder: Path) -> str | None:
        """Harm the newest checkpoint, if there is an older one; its name."""
        from lmstack.models.checkpoint_folder import DamagedCheckpointError, checkpoints_in, read_manifest

        found = checkpoints_in(folder)
        if len(found) < 2:
            return None
        try:
            read_manifest(found[-1])
        except DamagedCheckpointError:
            return found[-1].name  # still, from the last time
        damage = self.random.choice(DAMAGES)
        manifest, file = (
            found[-1] / "manifest.json",
            found[-1] / self.random.choice(["model.safetensors", "training_state.pt"]),
        )
        match damage:
            case "truncated":
                os.truncate(file, self.random.randrange(file.stat().st_size))
            case "bit flipped":
                content = bytearray(file.read_bytes())
                content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
                file.write_bytes(content)
            case "file missing":
                file.unlink()
            case "no manifest":
                manifest.unlink()
            case "torn manifest":
                os.truncate(manifest, self.random.randrange(manifest.stat().st_size))
        self.tally.damages[damage] += 1
        return found[-1].name


def main() -> int:
    """Torment each kind of run, and say what happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=60, help="over all runs")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments; another one each time")
    parser.add_argument("--runs", default="pretrain,pretrain_in_background,sft,ppo")
    parser.add_argument("--keep", action="store_true", help="do not delete the folder, also when all is well")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    folder, began = Path(tempfile.mkdtemp(prefix="lmstack-chaos-")), time.monotonic()
    print(f"chaos: seed {seed}, in {folder}", flush=True)
    os.chdir(folder)
    names = arguments.runs.split(",")
    prepare(names)
    total = Counter()
    for position, name in enumerate(names):
        share = arguments.kills * (position + 1) // len(names) - arguments.kills * position // len(names)
        chaos = Chaos(name, random.Random(f"{seed} {name}"), share)
        chaos.torment()
        tally = chaos.tally
        total += Counter(kills=sum(tally.ways.values()), saving=tally.while_saving, damaged=tally.damages.total())
        print(
            f"{name}: {tally.runs} runs in {tally.lives} lives, all equal to the undisturbed one. "
            f"{dict(tally.ways)}, {tally.while_saving} killed within a save. Damaged: {dict(tally.damages)}",
            flush=True,
        )
    print(
        f"chaos: {total['kills']} kills, {total['saving']} within a save, {total['damaged']} checkpoints damaged, "
        f"no run differs by a bit. {time.monotonic() - began:.0f} s, seed {seed}"
    )
    if not arguments.keep:
        os.chdir("/")
        shutil.rmtree(folder)
    return 0


def prepare(names: list[str]) -> None:
    """Import all that the runs need, make their data, and run what they start from."""
    from lmstack.cli.lean_imports import import_lightning

    import_lightning({})
    for module in ("compose", "training", "announce", "saved_config"):
        importlib.import_module(f"lmstack.cli.{module}")
    for module in ("callbacks", "stages.ppo", "stages.sft", "data.modules.pretraining", "data.modules.prompts"):
        importlib.import_module(f"lmstack.{module}")
    import torch

    import chaos_runs

    torch.set_num_threads(1)
    chaos_runs.make_project(Path())
    for needed in dict.fromkeys(need for name in names for need in chaos_runs.NEEDS.get(name, [])):
        if needed not in names:
            Chaos(needed, random.Random(0), 0).reference()


if __name__ == "__main__":
    sys.exit(main())
