"""A corpus stage run over partitions in one process, as the runner would."""

from pathlib import Path

from lmstack.prep.document import Document, Verdict
from lmstack.prep.stage import Context, CorpusStage


def run_stage(
    stage: CorpusStage, partitions: list[list[Document]], folder: Path
) -> tuple[dict[str, Verdict], list[Context]]:
    """The verdict of each document by its id, and the context of each partition."""
    folder.mkdir()
    surveys = [folder / f"survey-{index}" for index in range(len(partitions))]
    for documents, survey in zip(partitions, surveys, strict=True):
        stage.survey(iter(documents), survey)
    stage.decide(surveys, folder)
    contexts = [Context(index, folder) for index in range(len(partitions))]
    verdicts = {}
    for documents, context in zip(partitions, contexts, strict=True):
        judge = stage.filter(context)
        verdicts |= {document.id: judge(document) for document in documents}
    return verdicts, contexts


def web(texts: list[str]) -> list[Document]:
    """Documents of a source, numbered."""
    return [Document(text, f"{number:04d}", "web") for number, text in enumerate(texts)]
