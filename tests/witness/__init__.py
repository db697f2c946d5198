"""The witness: what foveate did at one commit, and whether the working tree still does it, bit for bit.

    python -m tests.witness                          # all; old results are kept in out/witness/
    python -m tests.witness --quick                  # four families, nothing counted
    python -m tests.witness --family llava --example v2drop

Prompts and models are made once, by the old tree's own tests. Each tree then runs them in processes of its own.
"""
