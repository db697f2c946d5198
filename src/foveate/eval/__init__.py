"""What dropping costs in quality: methods at budgets against the full model, on the same questions.

Two halves ask: `embedded` held-out questions about drawn pictures, offline, and `lmms` benchmarks by name, through
lmms-eval. The files beside them are what both stand on, in this order:

    plan, cells              what is compared: methods at budgets
    provenance, store        what an answer depends on, and where it is kept
    first                    how far an answer's first token is from the full model's
    stats, pairing           figures and their intervals, paired with the full model's
    outcome, summary, figure what is shown: plain values, tables, a picture
    listener                 what a run tells while it goes on
"""
