"""Long runs: read files of samples, work on them in several processes, and store rows as they come.

samples        read samples from a folder of pictures, JSON lines, CSV or Parquet, with labels
remote         read folders, tables and media behind URLs, with `foveate batch --remote` alone
store          store rows in a folder; a run that ended in any way can be continued
crew           work in this process or several on this machine; retry items whose process died alone, then give up
listener       receives the progress of a run
versions       the versions and the commit that a figure depends on
"""
