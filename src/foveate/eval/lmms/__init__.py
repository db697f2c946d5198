"""Benchmarks through lmms-eval (extra "eval").

model_args               parse lmms-eval's `--model_args`
requests, plugin         lmms-eval's model `foveate`
logs, metrics            pair its sample logs with the full model's; compute the figure that papers print
"""
