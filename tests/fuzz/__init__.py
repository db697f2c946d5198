"""Bad input of every kind, made from a seed: each case must end in an answer or in one clear line.

    make fuzz                                           # everything: half an hour on two cores
    python -m tests.fuzz --kinds films,lines --scale 0.1
    python -m tests.fuzz --case pictures:1234           # one case again, with its traceback

A kind is a module with a function `case(rng, folder)`, which puts the case's files into an empty folder and gives a
`Case`. The random numbers come from the seed, the kind and the index, and from nothing else, so that a case can be made
again by its number.
"""
