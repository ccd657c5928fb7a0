"""Texts: language modelling (tiny Shakespeare, WikiText-2), sentiment (SST-2) and the survey.

Karpathy 2015, github.com/karpathy/char-rnn; Merity et al. 2016, arXiv:1609.07843; Socher et al.
2013, aclanthology.org/D13-1170.  Book: used throughout.
"""

import numpy as np

from qbook.data.files import fetch


def tiny_shakespeare():
    """-> the text, 1.1 million ASCII characters.  Raises DataUnavailable."""
    return _read("tinyshakespeare.txt")


def wikitext2(split):
    """split "valid" or "test" -> the text, tokenised, rare words already <unk>.

    Raises ValueError for another split, DataUnavailable.
    """
    _check_split(split, ("valid", "test"))
    return _read(f"wikitext-2-{split}.txt")


def sst2(split):
    """split "train", "dev" or "test" -> (list of sentences, labels [n] int64: 1 is positive).

    Raises ValueError for another split, DataUnavailable.
    """
    _check_split(split, ("train", "dev", "test"))
    rows = [line.rsplit("\t", 1) for line in _read(f"sst2-{split}.tsv").split("\n") if line]
    return [sentence for sentence, _ in rows], np.array([int(label) for _, label in rows])


def survey():
    """-> the Markdown text of the survey that the book checks.  Raises DataUnavailable."""
    return _read("survey.md")


def _read(name):
    return fetch(name).read_bytes().decode("utf-8")


def _check_split(split, known):
    if split not in known:
        raise ValueError(f"split={split!r} does not exist; choose one of {', '.join(known)}")
