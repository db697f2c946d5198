"""Each layer, at once: CUDA graphs of a tower's run, a prefill and a decode step. Imported with `cuda_graphs` alone.

What the host knows of a prompt before the first layer (where vision tokens are, how many stay) is the same for every
prompt of that layout, and so are the decoder's kernels. A replay runs them on the new prompt's numbers, fills the given
cache, and leaves the same outcome as a plain run. A tower's kernels depend on the shape of its input, those of a step
on the number of places in its layers' rooms.

    recordings       a model's recordings, and the layouts seen
    modules          when a model's modules are those that were recorded
    replayer         the extension: runs a call without a graph, records it, or replays a recording
    regions          what is recorded of a call: a tower's, a prefill's, a step's
    twins            a copy of a begun forward, which is recorded
    shared_rooms     the memory in which recorded steps keep keys and values
"""

from foveate.engine.extensions.replays.replayer import Replayer

EXTENSION = Replayer
