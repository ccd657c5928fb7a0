"""Which GPU a kernel runs on, and what is missing where it cannot run.

    sm_75   T4                 no tensor cores through Triton, no fp8, 64 KiB of shared memory
    sm_80   A100     sm_86     RTX 30, A10     mma.sync on fp16, bf16 and int8; no fp8
    sm_89   L4, RTX 40         fp8 too
    sm_90   H100, H200         wgmma, the tensor memory accelerator
    sm_100  B200     sm_120    RTX 50

A tensor on a GPU is multiplied by Triton's kernel.  One on the CPU is multiplied by the reference,
or, in a process started with ``TRITON_INTERPRET=1``, by the same Triton kernel in Triton's
interpreter: slow, right, and without a GPU.  There the kernels for sm_90 are chosen, or those for
another GPU with ``QBOOK_GPU=75``.  Book: 6.1
"""

import functools
import importlib.util
import os

# NVIDIA, CUDA C++ Programming Guide, table of technical specifications: the most that one program
# can ask for, KiB.
SHARED_MEMORY = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
ARCHITECTURES = tuple(SHARED_MEMORY)
DEFAULT = 90


@functools.cache
def has_triton():
    return importlib.util.find_spec("triton") is not None


def interpreted():
    """Whether Triton's kernels run in its interpreter in this process."""
    return has_triton() and os.environ.get("TRITON_INTERPRET") == "1"


def runs_triton(tensor):
    """Whether a kernel, not the reference, multiplies this tensor.

    Raises RuntimeError for a tensor on a GPU where Triton is missing, or only interprets.
    """
    if tensor.device.type == "cpu":
        return interpreted()
    if not has_triton():
        raise RuntimeError(
            f"the tensor is on {tensor.device} and Triton is not installed; "
            "run `pip install triton`, or pass a tensor on the CPU to use the reference"
        )
    if interpreted():
        raise RuntimeError(
            f"the tensor is on {tensor.device} and TRITON_INTERPRET=1 asks for the interpreter; "
            "start Python without it, or pass a tensor on the CPU"
        )
    return True


def architecture(tensor):
    """-> compute capability as one number, 90 for 9.0: the best that kernels here were made for.

    Raises RuntimeError for a GPU older than sm_75, ValueError for an unknown QBOOK_GPU.
    """
    if tensor.device.type == "cuda":
        import torch

        major, minor = torch.cuda.get_device_capability(tensor.device)
        found = 10 * major + minor
        if found < min(ARCHITECTURES):
            raise RuntimeError(
                f"{tensor.device} is of architecture sm_{found}; the kernels need sm_75 or later"
            )
        return max(known for known in ARCHITECTURES if known <= found)
    asked = os.environ.get("QBOOK_GPU", str(DEFAULT))
    if asked not in map(str, ARCHITECTURES):
        raise ValueError(
            f"QBOOK_GPU={asked!r} is not known; choose one of {', '.join(map(str, ARCHITECTURES))}"
        )
    return int(asked)


def explain():
    """-> one line: whether there is a GPU, whether there is Triton, what would run."""
    import torch

    if not has_triton():
        return "no kernels for GPUs: Triton is not installed (`pip install triton`)"
    from triton import __version__

    if interpreted():
        return f"Triton {__version__} in its interpreter, on the CPU (TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return f"no CUDA device: Triton {__version__} can compile for one, the references run"
    name, arch = torch.cuda.get_device_name(), architecture(torch.empty(0, device="cuda"))
    return f"Triton {__version__} on {name}, kernels for sm_{arch}"


def require():
    """Raises RuntimeError, with what is missing, unless kernels can run on a GPU."""
    import torch

    if not has_triton() or interpreted() or not torch.cuda.is_available():
        raise RuntimeError(f"kernels cannot run on a GPU here: {explain()}")
