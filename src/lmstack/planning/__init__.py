"""What a run will cost, said before it starts."""

from lmstack.planning.measured_speed import measure_speed
from lmstack.planning.run_plan import RunPlan, Speed, plan_run
from lmstack.planning.table import describe_mixture, describe_run

__all__ = ["RunPlan", "Speed", "describe_mixture", "describe_run", "measure_speed", "plan_run"]
