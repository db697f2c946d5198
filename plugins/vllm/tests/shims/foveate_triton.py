"""Lets vLLM's runner V2 run on a CPU, in Triton's interpreter (TRITON_INTERPRET=1).

vLLM uses Triton on a CPU only where it has a backend of that name. The interpreter needs none: an empty one stands in.
`make setup-vllm` copies this file into an environment. Python reads it at each start, in an engine's processes too.
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.backends import Backend, backends

    backends["cpu"] = Backend(compiler=None, driver=None)
