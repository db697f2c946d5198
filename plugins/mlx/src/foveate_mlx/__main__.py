"""foveate-mlx: runs a command of mlx-vlm whose models drop vision tokens; or check; or bench.

foveate-mlx divprune --tokens 192 -- mlx_vlm.generate --model MODEL --image cat.jpg --prompt "What is this?"
foveate-mlx divprune --retention 0.3 -- mlx_vlm.server --model MODEL
foveate-mlx check MODEL
foveate-mlx bench MODEL divprune --tokens 192
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from foveate import embedded
from foveate.core.patching import Patcher
from foveate.errors import FoveateError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0; 1 if a check did not pass; 2 if something is wrong with what was asked."""
    own = sys.argv[1:] if arguments is None else [*arguments]
    kind = own[0] if own[:1] in (["check"], ["bench"]) else ""
    parser = argparse.ArgumentParser(f"foveate-mlx {kind}".strip(), usage=__doc__)
    if kind:
        parser.add_argument("model", metavar="MODEL", help="as for mlx_vlm.load")
    if kind != "check":
        parser.add_argument("method", metavar="METHOD", help="such as divprune")
        parser.add_argument("--tokens", type=int, metavar="N", help="vision tokens that stay of each picture")
        parser.add_argument("--retention", type=float, metavar="R", help="share that stays (default: a third)")
    if not kind:
        parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="of mlx-vlm: mlx_vlm.generate --model …")
    if kind == "bench":
        parser.add_argument("--image", default=str(embedded.picture()), metavar="FILE", help="default: foveate's own")
        parser.add_argument("--prompt", default=embedded.QUESTION, metavar="TEXT", help="default: %(default)s")
        parser.add_argument("--rounds", type=int, default=10, metavar="N", help="pairs of runs (default: 10)")
        parser.add_argument("--out", default="foveate-mlx-bench.json", metavar="FILE", help="default: %(default)s")
    options = parser.parse_args(own[bool(kind) :])
    try:
        if kind == "check":
            from foveate_mlx.check import check

            return int(not check(options.model))
        if kind == "bench":
            from foveate_mlx.bench import bench

            bench(options)
            return 0
        return _run(options)
    except FoveateError as error:
        print(f"foveate-mlx: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    """Run a command of mlx-vlm. Every model that it loads drops tokens."""
    from mlx_vlm import utils

    from foveate_mlx import drop

    with ExitStack() as contexts, Patcher() as patches:

        def load(original: Any, *args: Any, **kwargs: Any) -> Any:
            model = original(*args, **kwargs)
            if hasattr(model, "get_input_embeddings"):
                context = drop(model, options.method, tokens=options.tokens, retention=options.retention)
                trace = contexts.enter_context(context)
                contexts.callback(lambda: print(f"foveate-mlx: {trace}.", file=sys.stderr))
            return model

        patches.wrap(utils, "load_model", load)
        patches.put(sys, "argv", options.command)
        try:
            runpy.run_module(options.command[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:  # a number, or a message that Python prints
                raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
