"""What this example needs of llama.cpp, called by ctypes: rows in, logits out.

    pip install xllamacpp==2026.10.11549

llama.cpp passes structs by value, and their fields change from month to month. So they are declared here for one
version of that wheel, and `library` compares what llama.cpp fills in with that version's defaults.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

VERSION = "2026.10.11549"


class ModelParameters(ctypes.Structure):
    """`llama_model_params`, which are passed on as they come. They have fewer bytes than this."""

    _fields_ = [("bytes", c_uint8 * 256)]


class ContextParameters(ctypes.Structure):
    """`llama_context_params`. Behind these fields come others, which keep their defaults."""

    _fields_ = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "n_outputs_max")),
        ("n_outputs_max_per_seq", c_uint32),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        *((name, c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, c_int32) for name in ("type_k", "type_v")),
        ("others", c_uint8 * 128),
    ]


CONTEXT_DEFAULTS = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_threads": 4, "yarn_ext_factor": -1, "type_k": 1}


class TowerParameters(ctypes.Structure):
    """`mtmd_context_params`. Behind these fields come others, which keep their defaults."""

    _fields_ = [
        ("use_gpu", c_bool),
        ("device", c_void_p),
        ("print_timings", c_bool),
        ("n_threads", c_int32),
        ("image_marker", c_void_p),
        ("media_marker", c_void_p),
        ("flash_attn_type", c_int32),
        ("warmup", c_bool),
        ("image_min_tokens", c_int32),
        ("image_max_tokens", c_int32),
        ("others", c_uint8 * 128),
    ]


TOWER_DEFAULTS = {"n_threads": 4, "flash_attn_type": -1, "warmup": True, "image_max_tokens": -1}


class Batch(ctypes.Structure):
    """`llama_batch`: token ids or rows, with their positions."""

    _fields_ = [
        ("n_tokens", c_int32),
        *((name, c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")),
    ]


class Text(ctypes.Structure):
    """`mtmd_input_text`."""

    _fields_ = [("text", c_char_p), ("length", c_size_t), ("add_special", c_bool), ("parse_special", c_bool)]


SIGNATURES: dict[str, tuple[Any, Sequence[Any]]] = {
    "llama_model_default_params": (ModelParameters, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParameters)),
    "llama_model_free": (None, (c_void_p,)),
    "llama_model_n_embd_inp": (c_int32, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_context_default_params": (ContextParameters, ()),
    "llama_init_from_model": (c_void_p, (c_void_p, ContextParameters)),
    "llama_free": (None, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_set_causal_attn": (None, (c_void_p, c_bool)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits_ith": (POINTER(c_float), (c_void_p, c_int32)),
    "llama_log_set": (None, (c_void_p, c_void_p)),
    "mtmd_context_params_default": (TowerParameters, ()),
    "mtmd_init_from_file": (c_void_p, (c_char_p, c_void_p, TowerParameters)),
    "mtmd_free": (None, (c_void_p,)),
    "mtmd_helper_log_set": (None, (c_void_p, c_void_p)),
    "mtmd_bitmap_init": (c_void_p, (c_uint32, c_uint32, c_void_p)),
    "mtmd_bitmap_free": (None, (c_void_p,)),
    "mtmd_input_chunks_init": (c_void_p, ()),
    "mtmd_input_chunks_free": (None, (c_void_p,)),
    "mtmd_input_chunks_size": (c_size_t, (c_void_p,)),
    "mtmd_input_chunks_get": (c_void_p, (c_void_p, c_size_t)),
    "mtmd_input_chunk_get_type": (c_int32, (c_void_p,)),
    "mtmd_input_chunk_get_n_tokens": (c_size_t, (c_void_p,)),
    "mtmd_tokenize": (c_int32, (c_void_p, c_void_p, POINTER(Text), POINTER(c_void_p), c_size_t)),
    "mtmd_encode_chunk": (c_int32, (c_void_p, c_void_p)),
    "mtmd_get_output_embd": (POINTER(c_float), (c_void_p,)),
}

LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
messages: list[str] = []
"""What llama.cpp logged; the last lines say why a call failed."""


@LOG
def log(level: int, text: bytes, data: None) -> None:
    """Keep the latest messages instead of printing them."""
    messages[:] = [*messages[-20:], text.decode(errors="replace")]


@cache
def library() -> Any:
    """Load llama.cpp out of the wheel, with the signatures that are used here.

    Raises:
        RuntimeError: If another version is installed, or its structs are not as declared.
    """
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None or version("xllamacpp") != VERSION:
        raise RuntimeError(f"This example knows one version of llama.cpp: pip install xllamacpp=={VERSION}")
    (file,) = (path for path in Path(spec.origin).parent.iterdir() if path.suffix in (".so", ".pyd"))
    library = ctypes.CDLL(str(file))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for parameters, defaults in (
        (library.llama_context_default_params(), CONTEXT_DEFAULTS),
        (library.mtmd_context_params_default(), TOWER_DEFAULTS),
    ):
        values = {name: getattr(parameters, name) for name in defaults}
        if values != defaults:
            raise RuntimeError(f"The structs of llama.cpp are not those of {VERSION}: {values}, not {defaults}.")
    library.llama_log_set(log, None)
    library.mtmd_helper_log_set(log, None)
    return library


def check(success: Any, what: str) -> None:
    """Raise a RuntimeError with the end of llama.cpp's log unless a call succeeded."""
    if not success:
        raise RuntimeError(f"llama.cpp could not {what}: {''.join(messages[-3:]).strip()}")


class Decoder:
    """A decoder in llama.cpp with one sequence in its KV cache.

    Args:
        file: The GGUF file of the decoder.
        length: Room in the cache, and the most rows of a picture.

    Attributes:
        position: The position of the next row.
    """

    def __init__(self, file: Path, length: int = 2048, threads: int = 1) -> None:
        self._library = lib = library()
        self.model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
        check(self.model, f"load {file}")
        parameters = lib.llama_context_default_params()
        # All rows of a picture go into one batch: where they see each other, they must.
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = 0  # float32, to compare logits; float16 is the default
        parameters.flash_attn_type = 0
        self._context = lib.llama_init_from_model(self.model, parameters)
        check(self._context, "make a context")
        self.width: int = lib.llama_model_n_embd_inp(self.model)
        self._words: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.position = 0

    def close(self) -> None:
        """Free the context and the weights."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self.model)

    def clear(self) -> None:
        """Empty the cache."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        self.position = 0

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """Process text, and return the logits behind its last token, (words,) float32."""
        tokens = np.asarray(ids, np.int32)
        places = np.arange(self.position, self.position + len(tokens), dtype=np.int32)
        self._decode("token", tokens, places)
        self.position += len(tokens)
        return np.ctypeslib.as_array(self._library.llama_get_logits_ith(self._context, -1), (self._words,)).copy()

    def see(
        self, rows: np.ndarray, positions: np.ndarray | None = None, then: int | None = None, causal: bool = True
    ) -> None:
        """Process the rows of a picture.

        Args:
            rows: (rows, width) float32.
            positions: With M-RoPE, (rows, 3): time, row and column of the grid, counted from the prompt's beginning.
                None: rows are numbered one behind the other. llama.cpp refuses gaps in such numbers.
            then: The position behind the picture: that of all its tokens, also if some were dropped. None: behind the
                rows.
            causal: Whether a row sees only those before it. In Gemma 3 a picture's rows see each other.
        """
        rows = np.ascontiguousarray(rows, np.float32)
        if positions is None:
            places = np.arange(self.position, self.position + len(rows))
        else:  # all times, then all rows of the grid, then all columns, and a fourth part that pictures do not use
            places = np.concatenate([*np.asarray(positions).T, np.zeros(len(rows))])
        self._library.llama_set_causal_attn(self._context, causal)
        try:
            self._decode("embd", rows, np.ascontiguousarray(places, np.int32))
        finally:
            self._library.llama_set_causal_attn(self._context, True)
        self.position = self.position + len(rows) if then is None else then

    def _decode(self, kind: str, values: np.ndarray, places: np.ndarray) -> None:
        """Run one batch, all of sequence 0. The last row gives logits."""
        count = len(values)
        sequence = c_int32(0)
        counts = np.ones(count, np.int32)
        sequences = np.full(count, ctypes.addressof(sequence), np.uint64)  # a pointer a row
        outputs = np.zeros(count, np.int8)
        outputs[-1] = 1
        batch = Batch(n_tokens=count, **{kind: values.ctypes.data}, pos=places.ctypes.data)
        batch.n_seq_id, batch.seq_id, batch.logits = counts.ctypes.data, sequences.ctypes.data, outputs.ctypes.data
        check(self._library.llama_decode(self._context, batch) == 0, f"process {count} rows")


class Tower:
    """A vision tower with its projector in llama.cpp.

    Args:
        file: The GGUF file of the tower, often called mmproj.
        decoder: Its decoder.
    """

    def __init__(self, file: Path, decoder: Decoder, threads: int = 1) -> None:
        self._library, self._width = library(), decoder.width
        parameters = self._library.mtmd_context_params_default()
        parameters.use_gpu, parameters.warmup, parameters.n_threads = False, False, threads
        parameters.flash_attn_type = 0
        self._context = self._library.mtmd_init_from_file(str(file).encode(), decoder.model, parameters)
        check(self._context, f"load {file}")

    def close(self) -> None:
        """Free the tower."""
        self._library.mtmd_free(self._context)

    def rows(self, pixels: np.ndarray) -> np.ndarray:
        """Return the rows of a picture, (rows, width) float32.

        Args:
            pixels: (height, width, 3) uint8.
        """
        lib, pixels = self._library, np.ascontiguousarray(pixels, np.uint8)
        prompt = b"<__media__>"
        text = Text(prompt, len(prompt), False, True)
        bitmap = lib.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], pixels.ctypes.data)
        chunks = lib.mtmd_input_chunks_init()
        try:
            code = lib.mtmd_tokenize(self._context, chunks, byref(text), byref(c_void_p(bitmap)), 1)
            check(code == 0, "read the picture")
            pieces = [lib.mtmd_input_chunks_get(chunks, index) for index in range(lib.mtmd_input_chunks_size(chunks))]
            (picture,) = (piece for piece in pieces if lib.mtmd_input_chunk_get_type(piece) == 1)
            check(lib.mtmd_encode_chunk(self._context, picture) == 0, "run the tower")
            shape = lib.mtmd_input_chunk_get_n_tokens(picture), self._width
            # A copy: the next picture is written to the same place.
            return np.ctypeslib.as_array(lib.mtmd_get_output_embd(self._context), shape).copy()
        finally:
            lib.mtmd_input_chunks_free(chunks)
            lib.mtmd_bitmap_free(bitmap)
