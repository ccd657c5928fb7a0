"""llama.cpp's matrix-vector products, through the C interface of its library ggml.

The shared libraries are those of an installed ``llama_cpp`` package, or in the folder that the
environment variable QBOOK_GGML names, for instance after

    cmake -S llama.cpp/ggml -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build
    QBOOK_GGML=build/src python -m benchmarks.cpu

Formats: q4_0, blocks of 32 weights of 4 bits and a float16 scale; tq2_0 and tq1_0, blocks of 256
ternary weights in 2.06 and 1.69 bits.  x is quantized to 8 bits inside, as ours is.
"""

import ctypes
import functools
import importlib.util
import os
from pathlib import Path

import numpy as np

# enum ggml_type in ggml.h
F32, TYPES = 0, {"q4_0": 2, "tq1_0": 34, "tq2_0": 35}
PARTS = ("ggml-base", "ggml-cpu")
POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
SIZE, FLAG, TEXT = ctypes.c_size_t, ctypes.c_bool, ctypes.c_char_p


class InitParams(ctypes.Structure):
    """struct ggml_init_params"""

    _fields_ = (("mem_size", SIZE), ("mem_buffer", POINTER), ("no_alloc", FLAG))


# name: the part that it is in, its result, its arguments
FUNCTIONS = {
    "ggml_init": (0, POINTER, InitParams),
    "ggml_new_tensor_2d": (0, POINTER, POINTER, INT, LONG, LONG),
    "ggml_nbytes": (0, SIZE, POINTER),
    "ggml_blck_size": (0, LONG, INT),
    "ggml_quantize_chunk": (0, SIZE, INT, POINTER, POINTER, LONG, LONG, LONG, POINTER),
    "ggml_mul_mat": (0, POINTER, POINTER, POINTER, POINTER),
    "ggml_new_graph": (0, POINTER, POINTER),
    "ggml_build_forward_expand": (0, None, POINTER, POINTER),
    "ggml_backend_alloc_ctx_tensors_from_buft": (0, POINTER, POINTER, POINTER),
    "ggml_backend_buffer_free": (0, None, POINTER),
    "ggml_backend_buft_name": (0, TEXT, POINTER),
    "ggml_backend_cpu_buffer_type": (0, POINTER),
    "ggml_backend_reg_dev_get": (0, POINTER, POINTER, SIZE),
    "ggml_backend_reg_get_proc_address": (0, POINTER, POINTER, TEXT),
    "ggml_backend_dev_supports_op": (0, FLAG, POINTER, POINTER),
    "ggml_backend_tensor_set": (0, None, POINTER, POINTER, SIZE, SIZE),
    "ggml_backend_tensor_get": (0, None, POINTER, POINTER, SIZE, SIZE),
    "ggml_backend_graph_compute": (0, INT, POINTER, POINTER),
    "ggml_backend_cpu_reg": (1, POINTER),
    "ggml_backend_cpu_init": (1, POINTER),
    "ggml_backend_cpu_set_n_threads": (1, None, POINTER, INT),
}


def matvec(kind, w, x, threads):
    """kind of TYPES, w float32 [out, in], x float32 [in] -> call() -> w_hat x, float32 [out]

    The weight is quantized and packed before.  ``call.buffer`` names ggml's kind of memory for it:
    "CPU_REPACK" where rows are interleaved for the processor, "CPU" where they lie as in a file.
    None where the libraries are not to be had.  Raises ValueError for sizes it cannot take.
    """
    library = load()
    if library is None:
        return None
    out, in_ = w.shape
    block = library.ggml_blck_size(TYPES[kind])
    if in_ % block:
        raise ValueError(f"in={in_} is no multiple of {block}, the block of {kind}")
    for memory in buffer_types(library):
        built = build(library, memory, TYPES[kind], out, in_)
        if built is not None:
            break
    weight, source, product, graph = built
    codes = np.empty(library.ggml_nbytes(weight), np.uint8)
    rows = np.ascontiguousarray(w, np.float32)
    library.ggml_quantize_chunk(TYPES[kind], rows.ctypes.data, codes.ctypes.data, 0, out, in_, None)
    library.ggml_backend_tensor_set(weight, codes.ctypes.data, 0, codes.nbytes)
    vector = np.ascontiguousarray(x, np.float32)
    library.ggml_backend_tensor_set(source, vector.ctypes.data, 0, vector.nbytes)
    backend = library.ggml_backend_cpu_init()
    library.ggml_backend_cpu_set_n_threads(backend, threads)

    def call():
        if library.ggml_backend_graph_compute(backend, graph):
            raise RuntimeError(f"ggml failed to compute a product of {kind}, {out} x {in_}")
        y = np.empty(out, np.float32)
        library.ggml_backend_tensor_get(product, y.ctypes.data, 0, y.nbytes)
        return y

    call.buffer, call.nbytes = library.ggml_backend_buft_name(memory).decode(), codes.nbytes
    return call


def build(library, memory, kind, out, in_):
    """-> weight, x, product, graph; None where the processor has no product for such memory"""
    contexts = [library.ggml_init(InitParams(1 << 20, None, True)) for _ in range(2)]
    weight = library.ggml_new_tensor_2d(contexts[0], kind, in_, out)
    buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(contexts[0], memory)
    source = library.ggml_new_tensor_2d(contexts[1], F32, in_, 1)
    product = library.ggml_mul_mat(contexts[1], weight, source)
    device = library.ggml_backend_reg_dev_get(library.ggml_backend_cpu_reg(), 0)
    if not library.ggml_backend_dev_supports_op(device, product):
        library.ggml_backend_buffer_free(buffer)
        return None
    graph = library.ggml_new_graph(contexts[1])
    library.ggml_build_forward_expand(graph, product)
    plain = library.ggml_backend_cpu_buffer_type()
    library.ggml_backend_alloc_ctx_tensors_from_buft(contexts[1], plain)
    return weight, source, product, graph


def buffer_types(library):
    """-> kinds of memory for weights: those that the processor prefers, then the plain one"""
    registry = library.ggml_backend_cpu_reg()
    found = library.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    extra = []
    if found:
        ask = ctypes.CFUNCTYPE(ctypes.POINTER(POINTER), POINTER)(found)
        listed = ask(library.ggml_backend_reg_dev_get(registry, 0))
        while listed and listed[len(extra)]:
            extra.append(listed[len(extra)])
    return [*extra, library.ggml_backend_cpu_buffer_type()]


class Library:
    """The functions of FUNCTIONS, from the shared libraries in a folder."""

    def __init__(self, folder):
        parts = [
            ctypes.CDLL(str(next(folder.glob(f"*{part}.*"))), ctypes.RTLD_GLOBAL) for part in PARTS
        ]
        for name, (part, result, *arguments) in FUNCTIONS.items():
            function = getattr(parts[part], name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


@functools.cache
def load():
    """-> ``Library``, or None where there is none"""
    folder = os.environ.get("QBOOK_GGML")
    if folder is None:
        package = importlib.util.find_spec("llama_cpp")
        folder = Path(package.origin).parent / "lib" if package else None
    if folder is None or not all(any(Path(folder).glob(f"*{part}.*")) for part in PARTS):
        return None
    return Library(Path(folder))
