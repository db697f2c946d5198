"""Bad input of every kind, drawn by hypothesis: each case must end in an answer or in one clear line.

    make fuzz                                             # everything
    python -m tests.fuzz --kinds films,lines --scale 0.1
    python -m tests.fuzz --case films-0:AXicY2…           # one case again, as a failure's line names it

A kind is a module with a strategy `cases()` of `Case`. What fails is shrunk, and its files are kept.
"""
