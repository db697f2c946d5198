"""Lets a torchvision that was made for CUDA be imported beside a torch for the CPU: it lacks two operators' names.

`make setup-vllm` copies this file into an environment; Python reads it at each start, and it waits for torchvision.
"""

import sys

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class Before:
    """Declares the operators when torchvision is first looked for, and finds nothing itself."""

    library = None  # an operator lives as long as its library

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision" and cls.library is None:
            import torch

            cls.library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in SCHEMAS:
                cls.library.define(schema)


sys.meta_path.insert(0, Before)
