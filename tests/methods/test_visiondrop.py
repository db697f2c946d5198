from foveate.methods.visiondrop import VisionDrop

COUNTS = {"dominant": 14, "contextual": 3, "image_token_list": ((9, 2), (5, 1)), "layer_list": (2, 4), "reference": 25}
EXAMPLES = [
    VisionDrop(**COUNTS),
    VisionDrop(**COUNTS, positions="keep", merge="average"),
    VisionDrop(**{**COUNTS, "dominant": 0, "contextual": 0}, bidirectional=True),
    VisionDrop(dominant=9, contextual=2, layer_list=(), image_token_list=(), reference=25),
]
KEEP_ALL = VisionDrop(
    dominant=10_000, contextual=0, layer_list=(2,), image_token_list=((10_000, 0),), positions="keep", reference=25
)
