"""The witness: what foveate did at two commits, and whether the working tree still does it, bit for bit.

    python -m tests.witness                          # all, beside 32cba4e and a50230a; results are kept in out/witness/
    python -m tests.witness --old a50230a            # beside one of them
    python -m tests.witness --quick                  # four families, nothing counted
    python -m tests.witness --family llava --example v2drop

Prompts and models are made once, by a50230a's own tests. Each tree then runs them in processes of its own. 32cba4e has
eight methods; beside it operators and waits are counted too. Beside a50230a every method runs, a chain of each two
places, films, and the embedded model is asked, looks and answers a batch. What may differ is listed in changed.py.
"""
