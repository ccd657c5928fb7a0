"""What is timed together on a GPU: a ``timing.Group`` that knows its matrix units and its check."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qbook.lab import timing


@dataclass(frozen=True)
class Group(timing.Group):
    """units:   name of a case -> matrix unit that multiplies in it: "bf16", "fp16", "int8", "fp8"
    absent:  name of a case that is not there -> why, such as a library that is not installed
    check:   raises ValueError where a case of ours does not compute what it should
    """

    units: Mapping = field(default_factory=dict)
    absent: Mapping = field(default_factory=dict)
    check: Callable = lambda: None

    @property
    def ours(self):
        """-> name -> callable of the cases that are kernels of this repository"""
        return {name: case for name, case in self.cases.items() if name.startswith("qbook")}
