"""Print how the answer changes as the budget shrinks, for V2Drop and its two controls.

    python examples/budgets.py

One question is an illustration, not a measurement.
"""

from PIL import Image

import foveate as fv
from foveate import embedded

model, processor = embedded.load()
image = Image.open(embedded.picture())
inputs = processor(images=image, text=f"USER: <image>\n{embedded.QUESTION} ASSISTANT:", return_tensors="pt")
prompt = inputs["input_ids"].shape[1]

print(f"{embedded.QUESTION}\n{'retention':>9}  {'V2Drop':16}{'Random':16}{'Uniform':16}")
for retention in (1.0, 0.5, 0.33, 0.2):
    answers = []
    for kind in (fv.V2Drop, fv.Random, fv.Uniform):
        method = kind.for_budget(model, retention=retention)
        with fv.drop(model, method):
            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answers.append(processor.decode(ids[0, prompt:], skip_special_tokens=True).strip())
    print(f"{retention:9.0%}  " + "".join(f"{answer[:15]:16}" for answer in answers))
