"""A preparation as job files for Slurm: what a step does is what it does on one machine, so the bytes are the same."""

import shlex
import sys
from pathlib import Path

from lmstack.prep.executors import SlurmExecutor
from lmstack.prep.plan import Plan, Step

JOBS_FOLDER = "jobs"
SUBMIT_FILE = "submit.sh"


def write_jobs(plan: Plan, executor: SlurmExecutor, config: Path) -> Path:
    """Write a job file for each step and a script that submits them all, each after the one before.

    Args:
        plan: Of the preparation.
        executor: What jobs ask for.
        config: The resolved config, which jobs read.

    Returns:
        The script.
    """
    folder = plan.output / JOBS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.sbatch"):
        old.unlink()
    names = []
    for number, step in enumerate(plan.steps()):
        names.append(f"{number:02d}_{plan.stages[step.stage].name}_{step.action}.sbatch")
        (folder / names[-1]).write_text(_array(executor, config, number, step, folder), encoding="utf-8")
    names.append(f"{len(names):02d}_finish.sbatch")
    (folder / names[-1]).write_text(_last(executor, config, folder), encoding="utf-8")
    script = folder / SUBMIT_FILE
    script.write_text(_submit(names), encoding="utf-8")
    script.chmod(0o755)
    return script


def _array(executor: SlurmExecutor, config: Path, number: int, step: Step, folder: Path) -> str:
    num_jobs = min(executor.num_jobs, step.num_tasks)
    command = f"data prepare_step --config {shlex.quote(str(config))} step={number} num_parts={num_jobs}"
    lines = [f"--array=0-{num_jobs - 1}", "--cpus-per-task=1", f"--output={folder}/%x_%A_%a.log"]
    return _job(executor, lines, f"{command} part=$SLURM_ARRAY_TASK_ID")


def _last(executor: SlurmExecutor, config: Path, folder: Path) -> str:
    """What is left when all steps are done: the local run of the same config finds their results."""
    lines = [f"--cpus-per-task={executor.cpus_to_tokenize}", f"--output={folder}/%x_%j.log"]
    return _job(executor, lines, f"data prepare --config {shlex.quote(str(config))}")


def _job(executor: SlurmExecutor, lines: list[str], command: str) -> str:
    lines = [f"--{name}={value}" for name, value in (executor.options or {}).items()] + lines
    setup = [executor.setup] if executor.setup else []
    directives = [f"#SBATCH {line}" for line in lines]
    return "\n".join(
        ["#!/bin/bash", *directives, "set -e", *setup, f"exec {shlex.quote(sys.executable)} -m lmstack {command}", ""]
    )


def _submit(names: list[str]) -> str:
    lines = ["#!/bin/bash", "# Submits every step; each begins when the one before has ended well.", "set -e"]
    lines += ['cd "$(dirname "$0")"', f"job=$(sbatch --parsable {names[0]})"]
    lines += [f"job=$(sbatch --parsable --dependency=afterok:$job {name})" for name in names[1:]]
    return "\n".join([*lines, 'echo "the last job is $job"', ""])
