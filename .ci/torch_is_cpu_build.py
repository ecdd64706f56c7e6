"""Read pip's installation report on standard input; fail when it would fetch a CUDA build of torch."""

import json
import sys

versions = [item["metadata"]["version"] for item in json.load(sys.stdin)["install"]]
if sys.platform == "linux" and any("+cpu" not in version for version in versions):
    sys.exit(
        f"pip would install torch {versions[0]} with gigabytes of CUDA libraries; this machine has no NVIDIA driver.\n"
        "Run: make install TORCH_INDEX=<the CPU index given on PyTorch's installation page>"
    )
