"""Entry point: finds the command. Standard library only; nothing heavy is imported until a command needs it."""

import difflib
import importlib
import os
import sys
from typing import NoReturn

import lmstack
from lmstack.cli.failures import EXIT_NO_READER, ConfigError, reader_is_gone, reported

TRAINING = {
    "fit": "train",
    "validate": "loss, perplexity and bits per byte on the validation data",
    "test": "the same on the test data",
    "predict": "write a model's predictions",
}
# Tools whose command line is a function's signature; the others are modules of their name with `main(argv)`.
FUNCTIONS: dict[str, str | dict[str, str]] = {
    "data": {
        **{name: f"lmstack.cli.data:{name}" for name in ("build", "verify", "baselines", "assistant")},
        "best_of_n": "lmstack.cli.best_of_n:best_of_n",
        "prepare": "lmstack.cli.prepare:prepare",
        "prepare_step": "lmstack.cli.prepare:prepare_step",
        "look": "lmstack.cli.look:look",
        "train_classifier": "lmstack.cli.train_classifier:train_classifier",
    },
    "tokenizer": {
        "train": "lmstack.cli.tokenizer:train",
        **{name: f"lmstack.cli.compare_tokenizers:{name}" for name in ("compare", "report")},
        **{name: f"lmstack.cli.extend_tokenizer:{name}" for name in ("extend", "resize")},
    },
    "generate": "lmstack.cli.generate:generate",
    "pipeline": "lmstack.cli.pipeline:pipeline",
}
TOOLS = {
    "data": "corpora and demonstrations: prepare | look | build | verify | …",
    "tokenizer": "train | compare | report | extend | resize",
    "generate": "text from a checkpoint",
    "pipeline": "stages one after the other, each from the one before, and a report",
    "inspect": "one batch, decoded, documents and supervised tokens marked; what a run was doing when it failed",
    "control": "set a value, save, stop or roll back a run that goes on",
    "plan": "parameters, FLOPs, memory and time of a config",
    "config": "compose a config and print it",
}

USAGE = """\
usage: lmstack <command> --config conf/<name>.yaml [key=value ...]

{commands}

  model=llama_60m  optim=adamw  model.optimizer.lr=3e-4  ~callbacks.samples      choose a file, set or drop a key
  -m model.optimizer.lr=1e-4,3e-4                                                one run for each value
  ckpt_path=last                                                                 go on where the run stopped

  lmstack <command> --help    what the command takes
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: What follows `lmstack`; None takes it from `sys.argv`.

    Returns:
        The exit status: 0, 1 a run failed, 2 a wrong command line or config, 130 interrupted.
    """
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if command == "--version":
        print(f"lmstack {lmstack.__version__}")
        return 0
    with reported(go_on="the same command" + " and ckpt_path=last" * (command in TRAINING)) as outcome:
        outcome.exit_status = _dispatch(command, rest)
    return outcome.exit_status


def run() -> NoReturn:
    """The console script. A reader that has seen enough, as in `lmstack config ... | head`, is no error to report."""
    try:
        exit_status = main()
        sys.stdout.flush()  # here, where a closed pipe can still be caught
    except BrokenPipeError:
        if not reader_is_gone():  # another pipe than standard output broke: that is a bug
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains as it flushes at exit
        exit_status = EXIT_NO_READER
    sys.exit(exit_status)


def usage() -> str:
    """The first screen: every command in a line."""
    width = max(map(len, TRAINING | TOOLS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in (TRAINING | TOOLS).items()]
    return USAGE.format(commands="\n".join(lines))


def _dispatch(command: str, argv: list[str]) -> int:
    if command in TRAINING:
        from lmstack.cli.launch import launch

        return launch(command, argv)
    if command in FUNCTIONS:
        from lmstack.cli.tool import run_tool

        return run_tool(command, FUNCTIONS[command], argv)
    if command in TOOLS:
        return importlib.import_module(f"lmstack.cli.{command}").main(argv) or 0
    near = difflib.get_close_matches(command, [*TRAINING, *TOOLS], 1)
    raise ConfigError(
        f"unknown command {command!r}. "
        + (f"Did you mean {near[0]}?" if near else f"Commands: {', '.join(TRAINING | TOOLS)}.")
    )
