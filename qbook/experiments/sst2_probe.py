"""SST-2 on MiniLM: a logistic probe on its embeddings, fitted once on those of the real model.

Book: 4.5, 5.4, 5.5, 5.8
"""

import numpy as np


def fit(model, training=3000):
    """MiniLM -> scikit-learn's LogisticRegression, fitted on its first ``training`` sentences

    Raises ``DataUnavailable``.
    """
    from sklearn.linear_model import LogisticRegression

    from qbook.data import sst2

    texts, labels = sst2("train")
    return LogisticRegression(C=10, max_iter=1000).fit(
        model.encode(texts[:training]).numpy(), labels[:training]
    )


def held_out(sentences=None):
    """-> the first sentences of the dev split, a list, and their labels [sentences]"""
    from qbook.data import sst2

    texts, answers = sst2("dev")
    return texts[:sentences], np.asarray(answers[:sentences])
