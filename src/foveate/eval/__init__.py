"""Measure the loss of quality: compare methods at budgets with the full model on the same questions.

The questions are about drawn pictures (offline) or the user's own (`evaluation`), or come from logs of benchmarks that
lmms-eval ran (`lmms`). In the order of a run:

    plan                     the methods and budgets to compare
    provenance, records      everything an answer depends on, and the store of answers
    held_out, asked          questions about drawn pictures; asking them in one process or several
    pairing, quality_rows    logs of answers to rows of figures with intervals, paired with the full model's
    quality, pareto          tables and notes, and a figure
"""
