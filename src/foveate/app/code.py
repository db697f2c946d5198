"""The same as Python: what a user copies to repeat an answer without the page."""

from collections.abc import Sequence

from foveate import embedded
from foveate.app.subject import Subject

__all__ = ["code_of"]


def code_of(
    subject: Subject,
    question: str,
    methods: Sequence[str],
    retention: float,
    model: str = embedded.NAME,
    max_new_tokens: int = 64,
) -> str:
    """A program that asks the same and prints every answer, the untouched model's first.

    Args:
        subject: What was asked about; an upload is a file of that name in the folder where the program runs.
        question: The question.
        methods: What drops, each by its name.
        retention: The budget of each.
        model: As `foveate.load` takes it.
        max_new_tokens: The longest answer.
    """
    loading = "fv.load()" if model == embedded.NAME else f"fv.load({model!r})"
    lines = [
        "import foveate as fv",
        *subject.source.split("\n"),
        "",
        f"vlm = {loading}",
        f"question = {question!r}",
        f"full = vlm.ask(picture, question, max_new_tokens={max_new_tokens})",
        'print("full model:", full.text)',
    ]
    if methods:
        lines += [
            f"for method in {list(methods)!r}:",
            "    answer = vlm.ask(",
            f"        picture, question, method=method, retention={retention:g}, max_new_tokens={max_new_tokens}",
            "    )",
            '    print(f"{method}: {answer.text} ({answer.retention:.1%} of {answer.vision_tokens} vision tokens)")',
            '    # answer.show().save("kept.png") draws what was kept',
        ]
    return "\n".join(_sorted_imports(lines)) + "\n"


def _sorted_imports(lines: list[str]) -> list[str]:
    """The lines with all imports at the top."""
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    rest = [line for line in lines if line not in imports]
    imports.sort(key=lambda line: (" foveate" in line, line.startswith("from foveate"), line))
    return [*imports, "", *rest]
