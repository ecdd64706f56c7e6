"""`lmstack control`: change a run that goes on."""

import sys
from pathlib import Path
from typing import Any

from lmstack.cli.failures import ConfigError
from lmstack.control_requests import await_answer, send_request

HELP = """\
usage: lmstack control <run folder> <command>

  set model.optimizer.lr=3e-4 ...   other values, from the next step on
  save                              a checkpoint now
  stop                              a checkpoint, and the run ends with exit status 130
  rollback 1200                     the run ends with exit status 76, and goes on from the checkpoint of that step:
                                    by itself with supervise=true, else with ckpt_path=last

Can be set: model.optimizer.lr, model.optimizer.adamw_lr (Muon), model.optimizer.weight_decay, trainer.gradient_clip_val
(in PPO and GRPO model.update.max_grad_norm), model.transformer.dropout, model.transformer.feed_forward.activation; the
mixture, data.weights.<source>=... for every source; another optimizer, without state, by model.optimizer.kind=muon with
model.optimizer.lr, model.optimizer.adamw_lr and so on. The run does it at the end of a step, writes it to run.json, and
does it again at that step whenever it goes on from an earlier one.

  --wait 60   seconds to wait for the answer; a request without an answer is taken back
"""
WAIT_SECONDS = 60.0


def main(argv: list[str]) -> int:
    """Send a request, and say what the run answers.

    Args:
        argv: What follows `lmstack control`.

    Returns:
        The exit status.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    folder, request, seconds = parse_request(argv)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such run folder.")
    path = send_request(folder, request)
    try:
        said = await_answer(path, seconds)
    except TimeoutError:
        raise ConfigError(
            f"{folder}: the run has taken the request, and says nothing after {seconds:g} s. It does what was asked, "
            "unless it has ended: see its output and run.json."
        ) from None
    if said is None:
        raise ConfigError(
            f"{folder}: no answer in {seconds:g} s, and the request is taken back. Is the run going on, with "
            "callbacks.control? A step may take longer: --wait 600."
        )
    print(said, file=sys.stderr if said.startswith("refused") else sys.stdout)
    return 1 if said.startswith("refused") else 0


def parse_request(argv: list[str]) -> tuple[Path, dict[str, Any], float]:
    """The run folder, the request and how long to wait.

    Args:
        argv: What follows `lmstack control`.

    Raises:
        ConfigError: It cannot be read.
    """
    words, seconds = list(argv), WAIT_SECONDS
    if "--wait" in words:
        position = words.index("--wait")
        try:
            seconds = float(words[position + 1])
        except (IndexError, ValueError):
            raise ConfigError("--wait needs a number of seconds.") from None
        del words[position : position + 2]
    folder, command, rest = (*words[:2], *[""] * (2 - len(words[:2])), words[2:])
    match command, rest:
        case "set", [_, *_]:
            pairs = [word.partition("=") for word in rest]
            if wrong := [word for word, (key, sign, value) in zip(rest, pairs) if not (key and sign and value)]:
                raise ConfigError(f"cannot read {wrong[0]!r}: expected key=value.")
            return Path(folder), {"command": "set", "changes": {key: value for key, _, value in pairs}}, seconds
        case (("save" | "stop"), []):
            return Path(folder), {"command": command}, seconds
        case "rollback", [step] if step.isdecimal():
            return Path(folder), {"command": "rollback", "step": int(step)}, seconds
    raise ConfigError(
        f"cannot read {' '.join(argv)!r}: expected <run folder> and set key=value ..., save, stop or rollback <step>."
    )
