"""What the notebooks use: setup line, checked figures, sliders, results for the prose."""

from qbook.lab.figures import show
from qbook.lab.results import result
from qbook.lab.session import setup
from qbook.lab.sliders import slider

__all__ = ["result", "setup", "show", "slider"]
