"""The half of benchmarks: GQA, POPE, TextVQA and the others by name, through lmms-eval (extra "eval").

from foveate.eval.lmms.evaluation import evaluate
"""
