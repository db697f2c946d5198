"""Benchmarks through lmms-eval (extra "eval").

arguments                what lmms-eval's `--model_args` say
requests, plugin         the model `foveate` of lmms-eval
logs, metrics            its sample logs, paired with the full model's; the figure that papers print
"""
