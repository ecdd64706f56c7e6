"""Train tokenizers of several sizes and word cuts on English, Chinese and code, and compare them on held-out text.

python experiments/005_tokenizers/run.py <folder with the texts> <folder for the tokenizers>
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

from lmstack.cli.compare_tokenizers import compare
from lmstack.cli.tokenizer import train
from lmstack.prep.readers import SourceConfig
from lmstack.tokenization import WordSplit

HERE = Path(__file__).parent
PARAGRAPHS = "\n\n"
ENGLISH = ("english_novels/*.txt", "wikitext2_valid/*.txt", "en_peps/peps/*.rst")
CHINESE = ("zh_vernacular_novels/*.txt", "zh_d2l_book/**/*.md", "zh_laws/**/*.md", "zh_classical_modern/*/*.txt")
CODE = ("code_python/**/*.py", "code_java/**/*.java")
SIZES = [4096, 8192, 16384, 32768]
SHARED: dict[str, Any] = {"validation_fraction": 0.05, "seed": 5}
EQUAL = {"english": 1.0, "chinese": 1.0, "code": 1.0}


def sources(data: Path) -> dict[str, SourceConfig]:
    def paths(names: tuple[str, ...]) -> list[str]:
        return [str(data / name) for name in names]

    return {
        "english": SourceConfig(paths(ENGLISH), separator=PARAGRAPHS, errors="replace"),
        "chinese": SourceConfig(paths(CHINESE), separator=PARAGRAPHS, errors="replace"),
        "code": SourceConfig(paths(CODE), errors="replace"),
    }


def main(data: Path, output: Path) -> None:
    texts = sources(data)
    options = {"sources": texts, "weights": EQUAL, "sample_bytes": 6_000_000, **SHARED}
    train(output=str(output / "bpe"), vocab_size=SIZES, **options)
    english_only = {"english": 1.0, "chinese": 0.0, "code": 0.0}
    train(output=str(output / "english_only"), vocab_size=16384, **(options | {"weights": english_only}))
    train(output=str(output / "single_digits"), vocab_size=16384, split=WordSplit(max_digits=1), **options)
    single = WordSplit(chinese="characters")
    train(output=str(output / "single_chinese"), vocab_size=16384, split=single, **options)
    names = {f"bpe {size}": str(output / "bpe" / str(size)) for size in SIZES}
    kinds = ("english_only", "single_digits", "single_chinese")
    names |= {f"{kind} 16384": str(output / kind) for kind in kinds}
    compare(tokenizers=names, sources=texts, output=str(output / "comparison.json"), **SHARED)
    write_results(json.loads((output / "comparison.json").read_text()))


def write_results(found: dict[str, Any]) -> None:
    with open(HERE / "results.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        ratios = [f"{source} {unit}" for source in EQUAL for unit in ("bytes/token", "tokens/word")]
        writer.writerow(["tokenizer", *ratios, "renyi", "unseen", "swallowed", "unreachable", "rare"])
        for name, figures in found["tokenizers"].items():
            counts = [figures["sources"][source] for source in EQUAL]
            cells = [f"{count[unit]:.3f}" for count in counts for unit in ("bytes_per_token", "fertility")]
            use = figures["vocabulary"]
            lists = (len(use["swallowed"]), len(use["unreachable"]))
            writer.writerow([name, *cells, f"{figures['renyi_efficiency']:.3f}", use["unseen"], *lists, use["rare"]])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
