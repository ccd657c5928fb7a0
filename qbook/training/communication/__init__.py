"""Gradients over the wire: how ranks agree on a mean gradient with few bytes.

A compressor is called with keys (what it remembers is kept under them) and this rank's tensors, and
returns the means over all ranks; a wire carries what it sends.  Book: 5.2
"""
