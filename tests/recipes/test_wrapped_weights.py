"""What wrapping for several processes must leave alone: the tie of embedding and head, and the first weights."""

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("wrapped_weights.py")


def reports_of(world_size: int) -> list[dict[str, Any]]:
    """What every rank found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [process.communicate(timeout=300) for process in ranks]
    assert [process.returncode for process in ranks] == [0] * world_size, outputs
    reports: list[dict[str, Any]] = json.loads(outputs[0][0])
    assert len(reports) == world_size
    return reports


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def reports(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return reports_of(request.param)


@pytest.mark.parametrize("layout", ["ddp", "shards"])
def test_a_tied_head_stays_the_embedding_with_the_gradient_of_one_process(
    reports: list[dict[str, Any]], layout: str
) -> None:
    for report in reports:
        found = report["tied"][layout]
        assert found["same object"]
        assert found["same storage"]
        assert found["same storage in the forward"]
        assert found["same names"]
        assert found["rows without gradient"] == 0  # the head reaches every row, not only those looked up
        assert found["largest error"] < 1e-6


@pytest.mark.parametrize("layout", ["shards", "replicas"])
def test_a_model_built_on_meta_and_sharded_starts_with_the_weights_of_one_process(
    reports: list[dict[str, Any]], layout: str
) -> None:
    """Ranks draw under different seeds here: the first one's count."""
    assert all(report["initialized"][layout]["largest error"] == 0.0 for report in reports)


def test_shards_of_a_matrix_differ_and_its_replicas_agree(reports: list[dict[str, Any]]) -> None:
    for one, other in itertools.combinations(reports, 2):
        for name, values in one["initialized"]["shards"]["local"].items():
            assert values != other["initialized"]["shards"]["local"][name], name
        assert one["initialized"]["replicas"]["local"] == other["initialized"]["replicas"]["local"]


def test_data_parallel_replicas_start_from_the_weights_of_the_first_process(reports: list[dict[str, Any]]) -> None:
    assert [report["broadcast"] for report in reports] == [0.0] * len(reports)
