"""What happens around training: saving, measuring, showing."""

from lmstack.callbacks.checkpoint_io import FolderCheckpointIO
from lmstack.callbacks.checkpointing import Checkpointing
from lmstack.callbacks.control import Control
from lmstack.callbacks.corruption_watch import CorruptionWatch
from lmstack.callbacks.heartbeat import Heartbeat
from lmstack.callbacks.learning_rate_logger import LearningRateLogger
from lmstack.callbacks.metrics_csv import MetricsCsv
from lmstack.callbacks.post_mortem import PostMortem
from lmstack.callbacks.preemption import Preemption
from lmstack.callbacks.rollout_logger import RolloutLogger
from lmstack.callbacks.run_progress import RunProgress
from lmstack.callbacks.run_recorder import RunRecorder
from lmstack.callbacks.sample_logger import SampleLogger
from lmstack.callbacks.spike_guard import SpikeGuard
from lmstack.callbacks.supervision_audit import SupervisionAudit
from lmstack.callbacks.throughput import Throughput
from lmstack.callbacks.training_dynamics import TrainingDynamics
from lmstack.callbacks.weight_average import WeightAverage

__all__ = [
    "Checkpointing",
    "Control",
    "CorruptionWatch",
    "FolderCheckpointIO",
    "Heartbeat",
    "LearningRateLogger",
    "MetricsCsv",
    "PostMortem",
    "Preemption",
    "RolloutLogger",
    "RunProgress",
    "RunRecorder",
    "SampleLogger",
    "SpikeGuard",
    "SupervisionAudit",
    "Throughput",
    "TrainingDynamics",
    "WeightAverage",
]
