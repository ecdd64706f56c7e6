"""metrics.csv: one row a step."""

from pathlib import Path

from lmstack.callbacks.metrics_csv import MetricsCsv, last_value, read_metrics


def test_what_is_logged_for_one_step_is_one_row(tmp_path: Path) -> None:
    logger = MetricsCsv(str(tmp_path))
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=1)
    logger.log_metrics({"val/loss": 3.0}, step=1)
    logger.log_metrics({"train/loss": 1.5}, step=2)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,train/loss,val/loss", "1,2.0,3.0", "2,1.5,"]
    assert last_value(tmp_path / "metrics.csv", "val/loss") == 3.0
    assert last_value(tmp_path / "metrics.csv", "absent") is None


def test_a_step_logged_twice_is_not_two_rows(tmp_path: Path) -> None:
    logger = MetricsCsv(str(tmp_path))
    for value in (2.0, 2.0, 1.0):
        logger.log_metrics({"train/loss": value}, step=1)
    assert [row["train/loss"] for row in read_metrics(tmp_path / "metrics.csv")] == ["1.0"]


def test_a_row_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    MetricsCsv(str(tmp_path)).log_metrics({"train/loss": 2.0}, step=1)
    assert len(read_metrics(tmp_path / "metrics.csv")) == 1


def test_resuming_drops_the_steps_after_the_checkpoint_and_keeps_the_columns(tmp_path: Path) -> None:
    first = MetricsCsv(str(tmp_path))
    for step in range(1, 6):
        first.log_metrics({"a": float(step), "b": 0.0}, step=step)
    second = MetricsCsv(str(tmp_path))
    second.resume_from(3)
    second.log_metrics({"b": 1.0, "c": 2.0}, step=4)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[-1] == {"step": "4", "a": "", "b": "1.0", "c": "2.0"}


def test_a_second_logger_appends_under_the_columns_that_are_there(tmp_path: Path) -> None:
    MetricsCsv(str(tmp_path)).log_metrics({"a": 1.0, "b": 2.0}, step=1)
    MetricsCsv(str(tmp_path)).log_metrics({"b": 3.0}, step=2)
    assert read_metrics(tmp_path / "metrics.csv")[1] == {"step": "2", "a": "", "b": "3.0"}


def test_a_line_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,a,b\n1,2.0,3.0\n2,2.")
    assert [row["step"] for row in read_metrics(path)] == ["1"]
