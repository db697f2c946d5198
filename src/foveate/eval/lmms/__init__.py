"""Benchmarks by name, GQA, POPE, TextVQA and the others, through lmms-eval (extra "eval").

benchmarks               their names
setting, label           what lmms-eval's `--model_args` say, and what its files say of a run
plugin                   the model `foveate` of lmms-eval
harness, metrics         lmms-eval in this process: a log of answers, and the figure that papers print
benchmarking             several settings beside the full model
"""
