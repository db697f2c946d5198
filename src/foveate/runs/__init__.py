"""Long runs: rows that are kept as they come, processes that make them, and files of samples that go in.

samples        what goes in: a folder of pictures, JSON lines, CSV, Parquet; and the true answer beside a question
store          what comes out: a folder of rows, on from where a run was ended, however that was
crew           where work is done: this process, or several of this machine; what dies is asked alone, and then given up
on_ray         the same on several machines
listener       what a run tells while it goes on
versions       the versions and the commit that a figure depends on
"""
