"""Cut texts of English, Chinese and code into documents: one JSONL file a source.

python experiments/006_three_languages/collect.py path/to/texts data/three_languages/documents
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

ENGLISH = ("english_novels/*.txt", "wikitext2_valid/*.txt", "en_peps/peps/*.rst", "tinystories_2mb/*sample.txt")
CHINESE = ("zh_vernacular_novels/*.txt", "zh_d2l_book/**/*.md", "zh_laws/**/*.md", "zh_classical_modern/*/*.txt")
CODE = ("code_python/**/*.py", "code_java/**/*.java")
NUM_CHARACTERS = {"english": 4000, "chinese": 1300, "code": None}  # some 1,000 tokens; a file of code is a document


def main(texts: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for source, patterns in {"english": ENGLISH, "chinese": CHINESE, "code": CODE}.items():
        with open(output / f"{source}.jsonl", "w", encoding="utf-8") as stream:
            for file in sorted(file for pattern in patterns for file in texts.glob(pattern)):
                content = file.read_text(encoding="utf-8", errors="replace")
                for number, document in enumerate(cut(content, NUM_CHARACTERS[source])):
                    name = f"{file.relative_to(texts)}#{number}"
                    stream.write(json.dumps({"name": name, "text": document}, ensure_ascii=False) + "\n")


def cut(text: str, num_characters: int | None) -> Iterator[str]:
    """Documents of about that length that end where a line does."""
    document = ""
    for line in text.split("\n"):
        document += line + "\n"
        if num_characters and len(document) >= num_characters:
            yield document
            document = ""
    if document.strip():
        yield document


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
