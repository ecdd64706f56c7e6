"""How the work of a step is shared out over processes: Lightning strategies, each with a preset in `conf/strategy`."""

from lmstack.parallel.local_sgd import LocalSGD
from lmstack.parallel.mesh_strategy import MeshStrategy

__all__ = ["LocalSGD", "MeshStrategy"]
