import pytest
from rich.console import Console

from lmstack.data.mixture_plan import PlannedSource
from lmstack.models.config import DenseConfig, GaussianInit, RotaryConfig, TransformerConfig
from lmstack.planning import Speed, describe_mixture, describe_run, plan_run
from lmstack.planning.table import duration, quantity, size


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (5_123_456, "5.12M"), (8.03e9, "8.03G"), (1e15, "1P")]
)
def test_quantities_have_three_figures(number: float, text: str) -> None:
    assert quantity(number) == text


@pytest.mark.parametrize(("number", "text"), [(2**20, "1 MiB"), (500 * 2**20, "500 MiB"), (2**31, "2 GiB")])
def test_bytes_are_mib_or_gib(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.18, "0.18 s"), (45, "45 s"), (240, "4 min"), (720, "12 min"), (12_240, "3.4 h"), (440_640, "5.1 days")],
)
def test_times_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_table_says_what_the_run_will_do() -> None:
    config = TransformerConfig(
        vocab_size=100,
        max_seq_len=32,
        dim=16,
        num_layers=3,
        num_heads=2,
        positions=RotaryConfig(),
        feed_forward=DenseConfig(hidden_dim=40),
        initialization=GaussianInit(),
    )
    plan = plan_run(
        config,
        num_steps=1000,
        num_tokens=1000 * 256,
        sequence_length=32,
        micro_batch_size=2,
        global_batch_size=8,
        world_size=2,
        speed=Speed(1e9, "given"),
    )
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(describe_run(plan, "runs/x"))
    text = console.export_text()
    for said in ("runs/x", "2 rows x 2 micro-batches x 2 devices x 32 tokens", "1,000", "256k", "at 1GFLOP/s a device"):
        assert said in text


def test_the_mixture_has_a_line_for_each_source_of_each_phase() -> None:
    sources = [
        PlannedSource(1, "web[a]", 9_000_000, 0.9, 0.45, False),
        PlannedSource(1, "books", 1_000_000, 0.1, 4.0, True),
        PlannedSource(2, "web[a]", 500_000, 1.0, 0.475, False),
    ]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(describe_mixture(sources))
    assert [line.split() for line in captured.get().splitlines()[1:]] == [
        ["1", "web[a]", "9M", "90.0%", "0.45"],
        ["1", "books", "1M", "10.0%", "4", "less", "than", "its", "weight:", "max_epochs"],
        ["2", "web[a]", "500k", "100.0%", "0.475"],
    ]
