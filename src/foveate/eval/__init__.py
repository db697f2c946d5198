"""What dropping costs in quality: methods at budgets against the full model, on the same questions.

Questions about drawn pictures, offline, or about somebody's own (`evaluation`), and logs of benchmarks that lmms-eval
ran (`lmms`). In the order of a run:

    plan                     what is compared: methods at budgets
    provenance, records      what an answer depends on, and where it is kept
    held_out, asked          questions about drawn pictures; asking them in this process or in several
    pairing                  from logs of answers to rows of figures with intervals, paired with the full model's
    quality, pareto          what is shown: tables and sentences, a picture
"""
