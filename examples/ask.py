"""Ask about pictures in three ways: one question, a choice between answers, and many questions in batches.

python examples/ask.py [picture.png]
"""

import sys

import foveate as fv
from foveate import embedded

vlm = fv.load()
picture = sys.argv[1] if len(sys.argv) > 1 else embedded.picture()

answer = vlm.ask(picture, "What does the text say?", method="v2drop", retention=1 / 3)
print(f"{answer.prompt.text} {answer}  ({answer.retention:.0%} of the vision tokens)")

choice = vlm.ask(picture, "How many squares are there?", choices=["0", "1", "2", "3"], method="v2drop")
print(f"{choice.prompt.text} {choice}  (log-probability {choice.choices[choice.text]:.2f})")

questions = [(picture, f"How many {shape}s are there?") for shape in ("circle", "ring", "diamond")]
for reply in vlm.ask_many(questions, batch_size=3, method="visiondrop", retention=0.3):
    print(f"{reply.prompt.text} {reply}")
