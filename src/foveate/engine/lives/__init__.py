"""Decode: the lives of a cache layer. Each is a class that takes the layer's place in the cache and gives it back.

bare         keys and values of the kept tokens, and what stands beside them
chosen       which slots of a layer stay, or are read
windowed     its rows see a sliding window, and older ones leave
limited      steps read only some slots
shared       the samples of a batch continue from one beginning
tenant       its rows are in the memory of recorded steps
lending      what a layer remembers whose keys later layers attend to
"""
