"""Real models: small enough for two CPU cores, with real weights.

Each module imports torch and has a ``load()``; ``weights`` turns any of them into matrices.
Book: used throughout.
"""
