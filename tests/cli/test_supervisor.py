"""A supervised run, whose processes are small scripts that die, hang or save as they are told."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lmstack.cli.args import parse_arguments
from lmstack.cli.failures import ConfigError
from lmstack.cli.supervisor import SupervisorConfig, _Supervisor, supervise, supervisor_config

RUN = """
import faulthandler, json, os, pathlib, signal, socket, sys, time

run = pathlib.Path("run")
lives = run / "lives.txt"
run.mkdir(exist_ok=True)
with lives.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
life = len(lives.read_text().splitlines())

def save(step):
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")

def beat(rank=0, pid=None, step=0):
    (run / "heartbeats").mkdir(exist_ok=True)
    facts = {"rank": rank, "host": socket.gethostname(), "pid": pid or os.getpid(), "step": step}
    (run / "heartbeats" / f"rank-{rank}.json").write_text(json.dumps(facts))
"""


def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, *words: str, **config: Any) -> int:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(RUN + body)
    arguments = parse_arguments(["--config", "c.yaml", *words])
    settings = SupervisorConfig(**({"backoff_seconds": 0.05, "hang_seconds": 60.0} | config))
    return supervise(settings, arguments, Path("run"), program=(sys.executable, str(script)))


def lives() -> list[str]:
    return Path("run/lives.txt").read_text().splitlines()


def restarts() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("run/restarts.jsonl").read_text().splitlines()]


def test_a_run_that_ends_well_is_started_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supervised(tmp_path, monkeypatch, "") == 0
    assert lives() == ["--config c.yaml"]
    assert not Path("run/restarts.jsonl").exists()


def test_it_goes_on_from_its_own_checkpoint_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "if life == 2: save(4)\nsys.exit(0 if life == 3 else 7)"
    assert supervised(tmp_path, monkeypatch, body, "overwrite=true", "--ckpt_path", "runs/other", "model=x") == 0
    first = "--config c.yaml overwrite=true --ckpt_path=runs/other model=x"
    assert lives() == [first, first, "--config c.yaml model=x ckpt_path=last"]


def test_it_gives_up_after_failures_without_a_newer_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three steps of progress, each after a failure; then none."""
    body = "if life <= 3: save(life)\nprint('no such GPU', file=sys.stderr)\nsys.exit(9)"
    assert supervised(tmp_path, monkeypatch, body, max_failures=3) == 9
    assert len(lives()) == 5
    err = capfd.readouterr().err
    assert "giving up after 3 failures without a newer checkpoint than step 3." in err
    assert restarts()[-1]["last_lines"] == ["no such GPU"]


def test_checkpoints_of_the_run_that_is_replaced_are_neither_gone_on_from_nor_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old run has come to step 100. The new one fails before it has removed it, then once between two saves."""
    old = tmp_path / "run" / "checkpoints" / "step-00000100"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    body = """
import shutil
if life == 2:
    shutil.rmtree(run / "checkpoints")
if life > 1:
    save(life)
sys.exit(0 if life == 5 else 9)
"""
    assert supervised(tmp_path, monkeypatch, body, "overwrite=true", max_failures=2) == 0
    first, later = "--config c.yaml overwrite=true", "--config c.yaml ckpt_path=last"
    assert lives() == [first, first, later, later, later]


def test_after_a_rollback_steps_that_were_taken_before_are_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
import shutil
if life == 1:
    save(10)
    sys.exit(9)
if life == 2:
    shutil.rmtree(run / "checkpoints")
    save(4)
    sys.exit(76)
save(2 + life)
sys.exit(0 if life == 6 else 9)
"""
    assert supervised(tmp_path, monkeypatch, body, max_failures=2) == 0


def test_a_copy_of_a_checkpoint_and_a_full_disk_do_not_end_the_supervision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`restarts.jsonl` is there, and takes no line."""
    body = """
save(1)
(run / "checkpoints" / "step-00000001.copy").mkdir(exist_ok=True)
(run / "checkpoints" / "step-00000001.copy" / "manifest.json").write_text("{}")
if life == 1:
    (run / "restarts.jsonl").symlink_to("/dev/full")
sys.exit(0 if life == 2 else 9)
"""
    assert supervised(tmp_path, monkeypatch, body) == 0
    assert "cannot write restarts.jsonl: No space left on device" in capfd.readouterr().err


def test_a_torn_line_of_an_earlier_failure_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "restarts.jsonl").write_text('{"host": "node1"}\n{"wh\n{"host": "node1"}\n')
    assert supervised(tmp_path, monkeypatch, "sys.exit(0 if life == 2 else 9)") == 0
    assert Path("run/excluded_hosts.txt").read_text() == "node1\n"


def test_a_signal_that_comes_before_there_is_a_process_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, words = time.monotonic(), _Supervisor._words

    def interrupted(self: _Supervisor, first: bool) -> list[str]:
        os.kill(os.getpid(), signal.SIGTERM)
        return words(self, first)

    monkeypatch.setattr(_Supervisor, "_words", interrupted)
    assert supervised(tmp_path, monkeypatch, "time.sleep(300)") == 75
    assert time.monotonic() - began < 200


def test_a_run_does_not_wait_for_somebody_to_read_its_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `| tee` that has died: more than a pipe holds is written, and the run ends well."""

    class Gone:
        def write(self, _: Any) -> None:
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self) -> None:
            pass

    gone: Any = Gone()
    gone.buffer = gone
    monkeypatch.setattr(sys, "stderr", gone)
    body = "sys.stderr.write(('x' * 99 + '\\n') * 5000)\nsys.exit(0 if life == 2 else 9)"
    assert supervised(tmp_path, monkeypatch, body, hang_seconds=120.0) == 0
    assert len(lives()) == 2


@pytest.mark.parametrize("status", [0, 2, 75, 130])
def test_a_status_that_means_something_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    assert supervised(tmp_path, monkeypatch, f"sys.exit({status})") == status
    assert len(lives()) == 1


def test_a_rollback_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supervised(tmp_path, monkeypatch, "save(1)\nsys.exit(76 if life < 5 else 0)", max_failures=1) == 0
    assert len(lives()) == 5
    assert not Path("run/restarts.jsonl").exists()


def test_the_process_that_was_killed_is_named_and_not_the_one_that_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 dies without a word; rank 0 then fails with an error of its own, and writes a post-mortem."""
    body = """
if life == 1:
    other = os.fork()
    if other == 0:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    beat(0, step=12)
    beat(1, other, step=12)
    time.sleep(1.5)
    folder = run / "post_mortem" / "step-00000012-rank-0"
    folder.mkdir(parents=True)
    facts = {"time": time.time(), "rank": 0, "host": "here", "step": 12, "error": "connection reset by peer"}
    (folder / "facts.json").write_text(json.dumps(facts))
    sys.exit(1)
"""
    assert supervised(tmp_path, monkeypatch, body) == 0
    (failure,) = restarts()
    assert (failure["rank"], failure["host"], failure["step"]) == (1, socket.gethostname(), 12)
    assert failure["what"] == "was killed"


@pytest.mark.parametrize(
    ("end", "what", "status"),
    [("sys.exit(9)", "ended with exit status 9", 9), ("os.kill(os.getpid(), 9)", "was killed by SIGKILL", 137)],
)
def test_a_process_that_leaves_no_word_is_told_by_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, what: str, status: int
) -> None:
    assert supervised(tmp_path, monkeypatch, f"beat(0, step=3)\n{end}", max_failures=1) == status
    (failure,) = restarts()
    assert (failure["rank"], failure["step"], failure["what"]) == (0, 3, what)


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
for rank, when, error in ((0, 2.0, "connection reset"), (3, 1.0, "out of memory")):
    folder = run / "post_mortem" / f"step-00000005-rank-{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"time": time.time() + when, "rank": rank, "host": f"node{rank}", "step": 5, "error": error}
    (folder / "facts.json").write_text(json.dumps(facts))
sys.exit(1)
"""
    assert supervised(tmp_path, monkeypatch, body, max_failures=2, exclude_after=2) == 1
    assert [(f["rank"], f["host"], f["error"]) for f in restarts()] == [(3, "node3", "out of memory")] * 2
    assert Path("run/excluded_hosts.txt").read_text() == "node3\n"


def test_who_is_suspected_goes_before_who_noticed_and_each_host_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
both = [{"rank": 1, "host": "node1"}, {"rank": 2, "host": "node2"}]
folder = run / "post_mortem" / "step-00000005-rank-0"
folder.mkdir(parents=True, exist_ok=True)
facts = {"time": time.time(), "rank": 0, "host": "node0", "step": 5, "error": "silent data corruption"}
(folder / "facts.json").write_text(json.dumps(facts | {"suspects": both if life == 1 else both[1:]}))
sys.exit(1)
"""
    assert supervised(tmp_path, monkeypatch, body, max_failures=2, exclude_after=2) == 1
    assert [(f["rank"], f["host"]) for f in restarts()] == [(None, "node1,node2"), (2, "node2")]
    assert Path("run/excluded_hosts.txt").read_text() == "node2\n"


def test_a_silent_process_leaves_its_stacks_and_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
(run / "heartbeats").mkdir()
faulthandler.register(signal.SIGUSR2, file=(run / "heartbeats" / "rank-0.stacks.txt").open("w"))
beat(0, step=3)
def waits_for_ever():
    time.sleep(600)
if life == 1:
    waits_for_ever()
"""
    began = time.monotonic()
    assert supervised(tmp_path, monkeypatch, body, hang_seconds=5.0) == 0
    assert time.monotonic() - began < 60
    (failure,) = restarts()
    assert (failure["rank"], failure["step"], failure["what"]) == (0, 3, "hung for 5 s")
    assert "waits_for_ever" in Path(failure["details"], "rank-0.stacks.txt").read_text()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75), (signal.SIGHUP, 75)],
)
def test_a_signal_goes_on_to_the_run_and_ends_the_supervision(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """As after SIGTERM before the run has handlers: what it dies of is no failure."""
    body = f"""
from pathlib import Path
import signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pytest, test_supervisor
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
script = "signal.signal(2, signal.SIG_DFL); time.sleep(60)"
with pytest.MonkeyPatch.context() as patch:
    sys.exit(test_supervisor.supervised(Path({str(tmp_path)!r}), patch, script))
"""
    with subprocess.Popen([sys.executable, "-c", body], stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while not (tmp_path / "run" / "lives.txt").exists() and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=30) == status, process.stderr.read()
    assert not (tmp_path / "run" / "restarts.jsonl").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"max_failure": 3}, "supervise={'max_failure': 3}: use true, or set supervise.max_failures"),
        ("yes", "supervise='yes': use true"),
        ({"max_failures": 0}, "supervise.max_failures=0: must be at least 1"),
        ({"max_failures": 2.5}, "supervise.max_failures=2.5: expected int"),
        ({"hang_seconds": "long"}, "supervise.hang_seconds='long': expected float"),
    ],
)
def test_a_wrong_setting_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        supervisor_config(value)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "SLURM_NTASKS"])
def test_two_supervisors_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "4")
    assert supervisor_config(None) is None
    with pytest.raises(ConfigError, match="torchrun"):
        supervisor_config(True)


def test_the_defaults_are_those_of_the_class() -> None:
    assert supervisor_config(True) == SupervisorConfig()
    assert supervisor_config({"max_failures": 5}) == SupervisorConfig(max_failures=5)
    assert os.environ.get("LMSTACK_SUPERVISED") is None
