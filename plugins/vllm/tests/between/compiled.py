"""A process of its own, for test_compiled: compiles a decoder beside stages, and prints how far its answers are off.

python -m tests.between.compiled FOLDER METHOD
"""

import sys

from tests.between.models import SIX, Reference, answers, engine, misses


def main(folder, method):
    import torch
    from vllm.model_executor.models.llama import LlamaModel

    eager = []
    forward = LlamaModel.forward

    def noted(self, *args, **options):
        if not torch.compiler.is_compiling():
            eager.append(1)
        return forward(self, *args, **options)

    LlamaModel.forward = noted
    reference = Reference(folder)
    # Dynamo's own backend compiles nothing, so that this takes seconds: what counts is which steps run its graph.
    options = {"enforce_eager": False, "compilation_config": {"backend": "eager"}}
    with engine(folder, method, **options) as llm:
        pairs = zip(answers(llm, SIX, 12), SIX, strict=True)
        far = max(misses(got, reference.answer(ask, method, 12)) for got, ask in pairs)
    print(far, torch._dynamo.utils.counters["stats"]["unique_graphs"], len(eager))


if __name__ == "__main__":
    main(*sys.argv[1:])
