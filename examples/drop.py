"""Ask the embedded model a question with and without dropping, and draw the tokens that were kept.

python examples/drop.py [kept.png]
"""

import sys

from PIL import Image

import foveate as fv
from foveate import embedded

model, processor = embedded.load()
image = Image.open(embedded.picture())
inputs = processor(images=image, text=f"USER: <image>\n{embedded.QUESTION} ASSISTANT:", return_tensors="pt")
prompt = inputs["input_ids"].shape[1]


def answer() -> str:
    """Return the model's answer, decoded greedily."""
    ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return processor.decode(ids[0, prompt:], skip_special_tokens=True).strip()


print("question:     ", embedded.QUESTION)
print("full model:   ", answer())
with fv.drop(model, fv.V2Drop.for_budget(model, retention=1 / 3)) as trace:
    print("with dropping:", answer())
for stage in trace.stages:
    print(f"before layer {stage.layer}: {stage.before[0]} to {stage.after[0]} vision tokens")
print(f"retention {trace.retention[0]:.1%}, {trace.kv_lengths[-1][0]} rows in the last layer's cache")
trace.show(image).save(sys.argv[1] if len(sys.argv) > 1 else "kept.png")
