import pytest
import torch

from qbook import data
from qbook.models import minilm

FOLDER = "all-MiniLM-L6-v2"
SST2 = "sst2-dev.tsv"
MODEL, CONFIG, TOKENIZER, VOCABULARY = (
    f"{FOLDER}/{name}"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "vocab.txt")
)


def needs(*names):
    missing = [data.how_to_get(name) for name in names if not data.available(name)]
    return pytest.mark.skipif(bool(missing), reason="; ".join(missing))


# Float64 comparisons: in float32 both models are within 4e-6 of the float64 result (values up to
# 6, six layers), that is within about 60 * 2^-24; 60 * 2^-53 is 7e-15.  1e-12 leaves room for any
# order of summation; the tanh form of GELU or another epsilon would be off by 1e-6 or more.
TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def model():
    return minilm.load().double()


@pytest.fixture(scope="module")
def bert():
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig.from_json_file(data.fetch(CONFIG)), add_pooling_layer=False)
    loaded = bert.load_state_dict(load_file(data.fetch(MODEL)), strict=False)
    assert loaded.missing_keys == []
    return bert.double().eval()


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import BertTokenizerFast

    return BertTokenizerFast.from_pretrained(data.fetch(VOCABULARY).parent)


@needs(MODEL, CONFIG, TOKENIZER, VOCABULARY, SST2)
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_embeddings_equal_the_mean_pooled_bert_of_transformers(model, bert, tokenizer, batch_size):
    sentences = data.sst2("dev")[0][:16]
    expected = []
    with torch.no_grad():
        for sentence in sentences:
            # One sentence at a time: nothing is padded, nothing masked.
            hidden = bert(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
            expected.append(hidden.mean(dim=0) / hidden.mean(dim=0).norm())
    actual = model.encode(sentences, batch_size)
    assert actual.shape == (16, 384)
    assert (actual - torch.stack(expected)).abs().max() <= TOLERANCE


@needs(MODEL, CONFIG, SST2, VOCABULARY)
def test_hidden_states_equal_bert_of_transformers_with_padding(model, bert, tokenizer):
    inputs = tokenizer(data.sst2("dev")[0][16:24], padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].bool()
    assert not mask.all()
    with torch.no_grad():
        expected = bert(**inputs).last_hidden_state[mask]
        actual = model(inputs["input_ids"], mask)[mask]
    assert (actual - expected).abs().max() <= TOLERANCE


@needs(MODEL, TOKENIZER, SST2)
def test_float32_embeddings_are_float32_accurate(model):
    sentences = data.sst2("dev")[0][:16]
    actual = minilm.load().encode(sentences)
    assert actual.dtype == torch.float32
    # Hidden states are off by at most 4e-6, the mean of them by no more; its length is above 1.
    assert (actual - model.encode(sentences)).abs().max() <= 4e-6


@needs(TOKENIZER, VOCABULARY, SST2)
def test_ids_equal_those_of_transformers(tokenizer):
    sentences = data.sst2("dev")[0] + ["", "Café — naïve Ünïcode 東京", "[PAD] [MASK]", "x" * 200]
    assert minilm.tokenize(sentences) == tokenizer(sentences)["input_ids"]


@needs(TOKENIZER, VOCABULARY)
def test_a_long_text_is_cut_to_256_ids_with_the_separator_kept(tokenizer):
    text = "quantization " * 300
    (ids,) = minilm.tokenize([text])
    assert len(ids) == 256
    assert ids == tokenizer(text, truncation=True, max_length=256)["input_ids"]


@needs(MODEL, TOKENIZER)
def test_a_padding_token_in_the_text_is_text(model):
    sentences = ["one [PAD] two", "a sentence that is a good deal longer than the first"]
    ids = torch.tensor(minilm.tokenize(sentences)[:1])
    assert 0 in ids
    nothing_masked = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        expected = minilm.pool(model(ids, nothing_masked), nothing_masked)[0]
    assert (model.encode(sentences)[0] - expected).abs().max() <= TOLERANCE


@needs(MODEL, TOKENIZER)
def test_no_sentences_give_no_embeddings(model):
    assert model.encode([]).shape == (0, 384)


@needs(TOKENIZER)
def test_a_bare_string_is_refused():
    with pytest.raises(ValueError, match="'good' is one string; pass a list"):
        minilm.tokenize("good")


@needs(MODEL, TOKENIZER)
def test_embeddings_can_be_trained_on(model):
    head = torch.nn.Linear(384, 2).double()
    head(model.encode(["good", "bad"])).sum().backward()
    assert head.weight.grad.isfinite().all()


def test_the_model_has_the_published_shape():
    # Wang et al. 2020: 6 layers of width 384, 22 million parameters.
    with torch.device("meta"):
        model = minilm.MiniLM()
    table = (30522 + 512 + 2 + 2) * 384
    layer = 4 * (384 * 384 + 384) + 2 * 384 * 1536 + 384 + 1536 + 4 * 384
    assert sum(p.numel() for p in model.parameters()) == table + 6 * layer == 22_565_376
