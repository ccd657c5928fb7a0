"""Experiments that take minutes: tables whose full-size results are recorded with their command.

Each module runs as ``python -m qbook.experiments.NAME`` and writes ``results/NAME.json``; notebooks
show that file as recorded and run the same function again at reduced size.
"""
