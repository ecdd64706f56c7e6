"""Gather the six runs into results.csv and figure.svg.

python experiments/001_shakespeare_char/collect.py
"""

import csv
import json
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RECIPES = {"nanogpt": "nanoGPT's recipe", "ours": "rotary, RMSNorm, SwiGLU, Muon"}
SEEDS = (1, 2, 3)


def validation_curve(recipe: str, seed: int) -> list[tuple[int, float]]:
    with (Path("runs") / f"001_{recipe}_{seed}" / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["val/loss"])) for row in csv.DictReader(file) if row["val/loss"]]


def num_parameters(recipe: str, seed: int) -> int:
    from lmstack.models import count_parameters
    from lmstack.models.checkpoint_folder import newest_valid_checkpoint
    from lmstack.models.config import TransformerConfig

    folder = newest_valid_checkpoint(Path("runs") / f"001_{recipe}_{seed}")
    assert folder is not None
    config = json.loads((folder / "config.json").read_text())["transformer"]
    return count_parameters(TransformerConfig.from_dict(config)).total


if __name__ == "__main__":
    figure, axes = plt.subplots(figsize=(6, 4))
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["recipe", "seed", "parameters", "step", "validation_loss"])
        for color, (recipe, label) in zip(("tab:gray", "tab:blue"), RECIPES.items(), strict=True):
            finals = []
            for seed in SEEDS:
                curve = validation_curve(recipe, seed)
                writer.writerows([recipe, seed, num_parameters(recipe, seed), *point] for point in curve)
                axes.plot(*zip(*curve, strict=True), color=color, alpha=0.7, label=label if seed == SEEDS[0] else None)
                finals.append(curve[-1][1])
            print(f"{recipe}: {mean(finals):.3f} ± {stdev(finals):.3f} over seeds {SEEDS}")
    axes.axhline(1.88, color="black", linestyle=":", linewidth=1, label="nanoGPT, published")
    axes.set(xlabel="optimizer step", ylabel="validation loss, nats a character", ylim=(1.5, 2.8))
    axes.legend()
    figure.savefig(HERE / "figure.svg", bbox_inches="tight")
