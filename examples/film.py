"""Make a video from the embedded picture, ask about it, and draw which tokens of each frame are kept.

    python examples/film.py [kept.png]

The embedded model reads only pictures, so each frame is passed as a picture. Needs PyAV: pip install av.
"""

import sys
import tempfile
from pathlib import Path

import av
from PIL import Image

import foveate as fv
from foveate import embedded, video

model, processor = embedded.load()
scene = Image.open(embedded.picture()).convert("RGB")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = *scene.size, "yuv420p"
        for index in range(72):
            picture = Image.new("RGB", scene.size, "grey")
            picture.paste(scene, (2 * index - 72, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    clip = video.read(path, frames=3)

question = "What colour is the square?"
prompt = f"USER: {'<image>' * len(clip)}\n{question} ASSISTANT:"
inputs = processor(images=clip.images(), text=prompt, return_tensors="pt")
print(f"{question}  {len(clip)} frames at {', '.join(f'{second:.2f} s' for second in clip.seconds)}")
for scope in ("sample", "frame"):
    method = fv.V2Drop.for_budget(model, retention=1 / 3, scope=scope)
    with fv.drop(model, method) as trace:
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    print(f"scope={scope!r}: {answer}")
    for stage, counts in zip(trace.stages, trace.kept_by_frame(), strict=True):
        print(f"  before layer {stage.layer}: {' '.join(map(str, counts))} tokens per frame")
    if scope == "sample":
        trace.show(clip).save(sys.argv[1] if len(sys.argv) > 1 else "kept.png")
