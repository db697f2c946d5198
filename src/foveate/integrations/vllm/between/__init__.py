"""Vision tokens dropped between decoder layers inside vLLM, by the stages that run on transformers.

The scheduler and the block tables of vLLM stay as they are. Where a layer cuts, the keys and values of the rows that
remain are written to the front of the request's own blocks, so that a layer's metadata depends on counts alone. In the
order of a request:

    configuring.py   what the engine must be set to, and what it refuses
    scheduler.py     a prompt with images is computed in one step
    model.py         what a model class of vLLM adds: where images are, and the step around its forward
    batch.py         a step as the host knows it
    dropping.py      one model: its stages, and how many rows each request has lost at each cut
    passing.py       one step with images: what stages leave, layer by layer
    heads.py         queries and keys of a layer, and how stages read them
    layout.py        the rows of a step behind a cut: their slots and the metadata of the layers there
    recording.py     attention backends that remember which batch they were asked about
"""
