"""The timeline of the field as data: first public appearances, and what each introduced.

A date is the earliest that the public could read or hear of it: an arXiv identifier's month, an
issue's, a talk's; a bare year where no more is known.  Keys are those of book/references.bib.
Book: 1.2
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """A work and its place.

    date:    "1957" or "2016-02", of the first public appearance
    key:     its entry in book/references.bib
    chapter: the chapter of the book that treats it
    survey:  its number among the survey's references, None for the many that it does not cite
    """

    date: str
    name: str
    key: str
    chapter: int
    introduced: str
    survey: int | None = None

    @property
    def year(self):
        """The date as a number of years: the middle of the month, or of the year."""
        year, _, month = self.date.partition("-")
        return int(year) + ((int(month) - 0.5) / 12 if month else 0.5)


EVENTS = (
    Event("1948-07", "Bennett", "bennett1948spectra", 2, "noise of a uniform quantizer"),
    Event("1948-07", "Shannon", "shannon1948mathematical", 2, "entropy, and bits as its unit"),
    Event("1957", "Lloyd", "lloyd1982least", 2, "the two conditions of an optimal quantizer"),
    Event("1959", "Shannon's R(D)", "shannon1959coding", 2, "the least rate for a distortion"),
    Event("1960", "Max", "max1960quantizing", 2, "tables of optimal levels for a Gaussian"),
    Event("1962", "Roberts", "roberts1962picture", 2, "dither: noise that makes errors harmless"),
    Event("1968", "Gish and Pierce", "gish1968asymptotically", 2, "even steps plus entropy coding"),
    Event("1979", "Gersho", "gersho1979asymptotically", 2, "the best cells in many dimensions"),
    Event("1982", "Conway and Sloane", "conway1982fast", 2, "rounding to a lattice, fast"),
    Event("1989", "Optimal Brain Damage", "lecun1989optimal", 4, "second derivatives pick weights"),
    Event("1992", "Hoehfeld, Fahlman", "hoehfeld1992learning", 2, "probabilistic rounding"),
    Event("1993-03", "Holt and Hwang", "holt1993finite", 2, "how many bits back-propagation needs"),
    Event("2011-12", "8-bit CPU nets", "vanhoucke2011improving", 3, "8-bit inference that is fast"),
    Event("2013-08", "STE", "bengio2013estimating", 2, "a gradient through a threshold", 12),
    Event("2014-02", "Horowitz", "horowitz2014computing", 1, "the price of an operation"),
    Event("2014-09", "1-bit SGD", "seide2014stochastic", 5, "gradients of one bit, error feedback"),
    Event("2014-12", "Courbariaux", "courbariaux2014training", 2, "training with 10-bit products"),
    Event("2015-02", "Gupta", "gupta2015deep", 2, "16-bit training by stochastic rounding"),
    Event("2015-10", "Deep Compression", "han2016deep", 3, "prune, cluster, entropy-code"),
    Event("2015-11", "BinaryConnect", "courbariaux2015binaryconnect", 3, "weights of one bit"),
    Event("2016-02", "BinaryNet", "courbariaux2016binarized", 3, "activations of one bit too", 2),
    Event("2016-03", "XNOR-Net", "rastegari2016xnornet", 3, "binary nets with scales", 3),
    Event("2016-05", "Ternary Weights", "li2016ternary", 3, "a zero between the signs"),
    Event("2016-06", "DoReFa-Net", "zhou2016dorefanet", 3, "low-bit gradients as well", 4),
    Event("2017-04", "TPU", "jouppi2017indatacenter", 6, "65,536 8-bit multipliers in a chip"),
    Event("2017-05", "TensorRT INT8", "migacz2017inference", 3, "calibration by divergence"),
    Event("2017-10", "Mixed precision", "micikevicius2018mixed", 5, "FP16 with master weights", 5),
    Event("2017-12", "Integer-only", "jacob2018quantization", 3, "inference without floats"),
    Event("2018-06", "White paper", "krishnamoorthi2018quantizing", 3, "per-channel weights"),
    Event("2018-12", "8-bit floats", "wang2018training", 5, "training in FP8, emulated"),
    Event("2019-02", "LSQ", "esser2020learned", 3, "the scale is learned"),
    Event("2019-05", "HAWQ", "dong2019hawq", 3, "bits by curvature"),
    Event("2019-06", "DFQ", "nagel2019datafree", 3, "equalization without data"),
    Event("2020-04", "AdaRound", "nagel2020up", 4, "rounding is learned", 6),
    Event("2020-05", "GPT-3", "brown2020language", 1, "175 billion parameters", 1),
    Event("2021-02", "BRECQ", "li2021brecq", 4, "block by block", 7),
    Event("2022-03", "QDrop", "wei2022qdrop", 4, "activations dropped out of quantization", 8),
    Event("2022-08", "LLM.int8()", "dettmers2022llmint8", 5, "outlier features apart", 9),
    Event("2022-08", "OBC", "frantar2022optimal", 4, "the surgeon quantizes"),
    Event("2022-09", "FP8 formats", "micikevicius2022fp8", 2, "E4M3 and E5M2"),
    Event("2022-10", "GPTQ", "frantar2023gptq", 4, "175 billion weights in hours"),
    Event("2022-11", "SmoothQuant", "xiao2023smoothquant", 5, "outliers move to weights", 13),
    Event("2023-05", "QLoRA", "dettmers2023qlora", 5, "fine-tuning over 4-bit weights"),
    Event("2023-06", "AWQ", "lin2024awq", 5, "scale up what activations use", 14),
    Event("2023-07", "QuIP", "chee2023quip", 4, "rotate, then round"),
    Event("2023-09", "MX", "ocp2023microscaling", 2, "a scale for 32 neighbours, standard"),
    Event("2023-10", "BitNet", "wang2023bitnet", 5, "language models of one-bit weights"),
    Event("2023-10", "FP8-LM", "peng2023fp8lm", 5, "optimizer and traffic in FP8", 10),
    Event("2024-02", "BitNet b1.58", "ma2024era", 5, "ternary language models", 11),
    Event("2024-12", "DeepSeek-V3", "deepseek2024deepseekv3", 5, "FP8 training in production"),
    Event("2025-09", "NVFP4 training", "nvidia2025pretraining", 5, "pre-training in 4 bits"),
)


def by_survey_number(number):
    """-> the event that the survey cites by this number.  Raises ValueError for an unknown one."""
    for event in EVENTS:
        if event.survey == number:
            return event
    known = sorted(event.survey for event in EVENTS if event.survey)
    raise ValueError(f"the survey's reference {number} is not in the timeline; known are {known}")
