"""Only messages meant for the user reach the screen. Standard library only; set before torch is imported."""

import logging
import os
import sys
import warnings

# Modules whose warnings are about their own insides; ours and the user's own are shown.
_CHATTY = ("lightning", "torch", "torchmetrics", "litdata", "tensorboard", "hydra", "omegaconf", "jsonargparse")


def quieten() -> None:
    """Set what third parties may say, and let the log of lmstack speak plainly."""
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for module in _CHATTY:
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    warnings.filterwarnings("ignore", message=r".*(does not have many workers|LeafSpec|lr_scheduler\.step)")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities", "torch", "litdata"):
        logging.getLogger(name).setLevel(logging.ERROR)
    handler = _ToStandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("lmstack")
    if not log.handlers:
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO)


def after_lightning() -> None:
    """Say it again: Lightning sets its log levels when it is imported."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _ToStandardError(logging.Handler):
    """Writes to what standard error is at the moment, which a stream handler looks up only once."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")
