"""Speed and memory of corpus preparation: every stage and the whole path, beside datatrove and `tokenizers` alone.

    python benchmarks/prep_throughput.py stages --text DATA/text --tokenizer TOKENIZER --peer-python PEERS/bin/python
    python benchmarks/prep_throughput.py path --megabytes 5 ...
    python benchmarks/prep_throughput.py tokens --megabytes 100 ...
    python benchmarks/prep_throughput.py memory --memory-megabytes 100 1000 ...

`stages`: each stage over documents in memory, on one core, in turns with datatrove's block for the same rules.
`path`: files of documents through the same rules to token shards, on all cores, in turns with datatrove's executor.
`tokens`: files of prepared documents to token shards, on all cores, in turns with `encode_batch` on texts in memory.
`memory`: all stages of a corpus in English and Chinese, the processes sampled, at each size.

A part that is not named keeps its figures in `--out`. `benchmarks/README.md` says how to make datatrove's environment.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from prep_throughput_documents import make_documents, write_documents
from prep_throughput_tables import report
from prep_throughput_turns import Library
from turns import cpu_model

from lmstack.prep.blocks import write_documents as write_prepared
from lmstack.prep.document import Document

HERE = Path(__file__).parent
STAGES = ("gopher", "repetition", "c4", "fineweb", "privacy", "mojibake", "exact", "near")
NUM_FILES = 64


def main() -> None:
    """Measure the parts that are named, and write all figures there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("stages", "path", "tokens", "memory"))
    parser.add_argument("--text", type=Path, required=True, help="folder of .txt, .md and .rst files")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a tokenizer.json")
    parser.add_argument("--peer-python", help="interpreter of an environment with datatrove")
    parser.add_argument("--megabytes", type=float, default=2, help="of the documents of stages, path and tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-megabytes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--workers", type=int, default=2, help="processes of memory")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "prep_throughput")
    arguments = parser.parse_args()
    if arguments.peer_python is None and {"stages", "path"} & set(arguments.parts):
        parser.error("stages and path are told beside datatrove: name its --peer-python")
    file = arguments.out.with_suffix(".json")
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for part in arguments.parts:
        measured = memory(arguments) if part == "memory" else turns(arguments, part)
        machine = {"processor": cpu_model(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
        results[part] = {**machine, **measured}
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(report(results), encoding="utf-8")
    print(report(results))


def turns(arguments: argparse.Namespace, part: str) -> dict[str, Any]:
    """The jobs of a part by each library, round after round.

    Args:
        arguments: Of the command line.
        part: `stages`, `path` or `tokens`.
    """
    with tempfile.TemporaryDirectory() as folder:
        size = _write(Path(folder), arguments.text, int(arguments.megabytes * 1e6), english_only=part != "tokens")
        command = [folder, str(arguments.tokenizer)]
        libraries = {"lmstack": Library([sys.executable, str(HERE / "prep_throughput_lmstack.py"), *command])}
        if arguments.peer_python is not None:
            peer = [arguments.peer_python, str(HERE / "prep_throughput_datatrove.py"), *command]
            libraries["datatrove"] = Library(peer)
        rows = [_in_turn(libraries, *job, arguments.rounds) for job in _jobs(part, set(libraries))]
        for library in libraries.values():
            library.stop()
    versions = {name: library.versions for name, library in libraries.items()}
    return {**size, "rounds": arguments.rounds, "versions": versions, "jobs": rows}


def _write(folder: Path, text: Path, num_bytes: int, *, english_only: bool) -> dict[str, Any]:
    """Documents in as many files as a stage of lmstack leaves."""
    documents = [
        Document(document, str(number), "text")
        for number, document in enumerate(make_documents(text, num_bytes, english_only=english_only))
    ]
    for part in range(NUM_FILES):
        stretch = documents[part * len(documents) // NUM_FILES : (part + 1) * len(documents) // NUM_FILES]
        write_prepared(folder / f"{part:06d}.jsonl.zst", stretch)
    return {"documents": len(documents), "mb": sum(len(document.text.encode()) for document in documents) / 1e6}


def _jobs(part: str, libraries: set[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each job by its name, as libraries and what it is called there, in the order of their turns."""
    if part == "tokens":
        takers = [("lmstack", "shards"), ("lmstack", "encode_batch"), ("datatrove", "shards")]
        return [("shards", [taker for taker in takers if taker[0] in libraries])]
    return [(name, [("lmstack", name), ("datatrove", name)]) for name in (STAGES if part == "stages" else ("path",))]


def _in_turn(libraries: dict[str, Library], job: str, takers: list[tuple[str, str]], rounds: int) -> dict[str, Any]:
    """Every round by each taker; where a job stays in one process, a round before loads what is loaded once."""
    taken: dict[str, list[dict[str, Any]]] = {f"{library} {name}": [] for library, name in takers}
    warm_up = int(job in STAGES)
    for number in range(rounds + warm_up):
        for library, name in takers:
            turn = libraries[library].take(name)
            if number >= warm_up:
                taken[f"{library} {name}"].append(turn)
    return {"job": job, "turns": taken}


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole path at each size, watched.

    Args:
        arguments: Of the command line.
    """
    from prep_throughput_memory import run_and_watch

    sizes = []
    for megabytes in arguments.memory_megabytes:
        with tempfile.TemporaryDirectory() as folder:
            documents, out = Path(folder, "documents.jsonl"), Path(folder, "result.json")
            write_documents(documents, arguments.text, megabytes * 1_000_000)
            command = [sys.executable, str(HERE / "prep_throughput_path.py"), str(documents), str(arguments.tokenizer)]
            command += [f"{folder}/prepared", "--workers", str(arguments.workers), "--out", str(out)]
            peak = run_and_watch(command)
            took = json.loads(out.read_text(encoding="utf-8"))
            sizes.append({"megabytes": megabytes, "workers": arguments.workers, **vars(peak), **took})
    return {"sizes": sizes}


if __name__ == "__main__":
    main()
