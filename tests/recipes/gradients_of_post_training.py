"""One optimizer step of each post-training stage on `world` gloo processes; the first writes gradients and metrics."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_post_training import one_step

if __name__ == "__main__":
    one_step(sys.argv[3].split(","), int(sys.argv[1]), Path(sys.argv[2]))
