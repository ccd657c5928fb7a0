"""One call that applies the book's methods to any model, and what it returns.

``quantize`` drives the plain functions of ``qbook.ptq``; ``storage`` saves and loads the result.
Book: 4.5
"""
