"""A launch as a value: which kernel, on what, with which tiles.  Book: 6.1

A launcher builds it; ``run`` runs it on a GPU or in the interpreter, and ``contract.compile_for``
compiles the very same one for a GPU that is not there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Launch:
    """kernel:  a function decorated with ``triton.jit``
    grid:       number of programs along one to three axes
    arguments:  name -> tensor, descriptor, number or constant, as the kernel names them
    num_warps:  warps of 32 threads a program has
    num_stages: loads that are under way at once in its loop
    fuse:       whether x * y + z may be rounded once; False where bits are promised
    does:       instructions that the compiled kernel must hold, such as "tensor core"; see contract
    """

    kernel: Callable
    grid: tuple
    arguments: Mapping
    num_warps: int = 4
    num_stages: int = 3
    fuse: bool = True
    does: tuple = field(default=())

    @property
    def options(self):
        """-> what the compiler is told beside the arguments"""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.fuse,
        }

    def run(self):
        self.kernel[self.grid](**self.arguments, **self.options)
