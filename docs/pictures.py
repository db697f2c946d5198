"""Draw what each method keeps of the demo picture: docs/images/methods/NAME.webp.

    python docs/pictures.py [NAME …]

The embedded model answers the demo's question with a mean of 64 vision tokens a decoder layer, or with the method's own
defaults where it takes no budget. A method that works on films alone is left out.
"""

import sys
from pathlib import Path

import foveate as fv
from foveate import embedded

FOLDER = Path(__file__).parent / "images/methods"
BUDGET = 64


def main(names: list[str]) -> int:
    """Draw the named methods, or all; the exit code."""
    known = fv.methods()
    if unknown := sorted(set(names) - set(known)):
        print(f"pictures.py: no method {unknown[0]!r}. There are: {', '.join(known)}.", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    vlm = fv.load()
    for name in names or known:
        draw(vlm, name)
    return 0


def draw(vlm: fv.VLM, name: str) -> None:
    """Draw one method, if it drops anything of a single picture."""
    try:
        answer = vlm.ask(embedded.picture(), embedded.QUESTION, method=name, tokens=BUDGET)
    except fv.SettingError:  # it takes no budget
        try:
            answer = vlm.ask(embedded.picture(), embedded.QUESTION, method=name)
        except fv.UnsupportedError as error:
            print(f"{name}: not on this model, {error}")
            return
    if answer.retention == 1:
        print(f"{name}: keeps all of a picture, not drawn")
        return
    path = FOLDER / f"{name}.webp"
    answer.show().save(path, quality=80, method=6)
    print(f"{name}: {answer.spent:.1f} tokens, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
