"""Calibration: the histogram, the entropy search and the search of least MSE.

The references of the searches are the functions of the same names in ``qbook.ranges``, which
``use="reference"`` calls.  Book: 2.7, 6.2
"""
