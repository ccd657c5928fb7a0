import numpy as np
import pytest

from qbook import data


def needs(name):
    return pytest.mark.skipif(not data.available(name), reason=data.how_to_get(name))


@pytest.mark.parametrize(
    ("split", "tokens"),
    [
        # Merity et al. 2016, table 1; every line ends in one <eos>.
        pytest.param("valid", 217_646, marks=needs("wikitext-2-valid.txt")),
        pytest.param("test", 245_569, marks=needs("wikitext-2-test.txt")),
    ],
)
def test_wikitext2_has_the_published_number_of_tokens(split, tokens):
    lines = data.wikitext2(split).split("\n")
    assert lines.pop() == ""
    assert sum(len(line.split()) + 1 for line in lines) == tokens


@needs("wikitext-2-test.txt")
def test_wikitext2_is_read_as_utf8():
    text = data.wikitext2("test")
    assert text.encode("utf-8") == data.fetch("wikitext-2-test.txt").read_bytes()
    # Bytes and characters as `wc -c -m` counts them.
    assert (len(text.encode("utf-8")), len(text)) == (1_256_449, 1_255_018)


@pytest.mark.parametrize(
    ("split", "count", "positive"),
    [
        # Sizes: Socher et al. 2013, section 5; balance of dev: GLUE's validation set.
        pytest.param("train", 6920, 3610, marks=needs("sst2-train.tsv")),
        pytest.param("dev", 872, 444, marks=needs("sst2-dev.tsv")),
        pytest.param("test", 1821, 909, marks=needs("sst2-test.tsv")),
    ],
)
def test_sst2_has_the_published_sizes(split, count, positive):
    sentences, labels = data.sst2(split)
    assert len(sentences) == labels.size == count
    assert labels.sum() == positive
    assert set(labels.tolist()) == {0, 1}
    assert labels.dtype == np.int64
    assert not any("\t" in s or "\n" in s or s.isspace() for s in sentences)


@needs("sst2-train.tsv")
def test_sst2_keeps_sentence_and_label_together():
    # The first lines of the file, whose labels no reader will dispute.
    sentences, labels = data.sst2("train")
    assert sentences[0].startswith("a stirring , funny and finally transporting")
    assert sentences[1].startswith("apparently reassembled from the cutting room floor")
    assert labels[:2].tolist() == [1, 0]


@needs("tinyshakespeare.txt")
def test_tiny_shakespeare_has_65_characters():
    # The vocabulary that char-rnn and nanoGPT report for this file.
    text = data.tiny_shakespeare()
    assert len(set(text)) == 65
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")


@needs("survey.md")
def test_the_survey_is_about_quantization():
    text = data.survey()
    assert text.startswith("#")
    assert "uantization" in text.split("\n")[0]


@pytest.mark.parametrize(("load", "split"), [(data.sst2, "valid"), (data.wikitext2, "train")])
def test_an_unknown_split_is_answered_with_the_known_ones(load, split):
    with pytest.raises(ValueError, match=f"'{split}' does not exist; choose one of .*test"):
        load(split)
