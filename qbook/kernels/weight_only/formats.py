"""What stored codes and stored scales are worth, one row for each format.

    int4      unsigned codes with a zero-point, scale float16 (as GPTQ and AWQ leave weights)
    ternary   codes 0, 1, 2 for -1, 0, 1, scale float16 (BitNet b1.58, arXiv:2402.17764)
    mxfp4     E2M1, a scale E8M0 for 32 (OCP Microscaling Formats v1.0; arXiv:2310.10537)
    nvfp4     E2M1, a scale E4M3 for 16 and a float32 for the tensor (NVIDIA, Blackwell)
    nf4       NormalFloat, scale float32 (Dettmers et al. 2023, arXiv:2305.14314)

Book: 2.5, 6.1
"""

from dataclasses import dataclass

from qbook import formats


@dataclass(frozen=True)
class WeightFormat:
    """bits:      width of a code: 2 or 4
    top:          the highest code
    decode:       name of the device function in ``decode`` for codes
    scale:        that for scales: ``scale_and_offset``, ``one_float32``, ``four_...``
    codes:        the format of a code; None: an integer, less its zero-point
    scales:       the format of a scale that is stored as a byte; None: a floating-point scale
    zero_point:   the one that is meant where none is given
    group_size:   the only one that the format allows; None: any
    """

    name: str
    bits: int
    top: int
    decode: str
    scale: str
    codes: formats.Format | None = None
    scales: formats.Format | None = None
    zero_point: int = 0
    group_size: int | None = None

    @property
    def fields(self):
        """Codes in a byte."""
        return 8 // self.bits

    @property
    def groups_a_word(self):
        """Groups whose scales share a word of 32 bits."""
        return 4 if self.scales is not None else 1

    @property
    def has_zero_point(self):
        return self.codes is None

    def values(self, codes, zero_point):
        """codes uint8, zero_point of their groups -> float32"""
        return codes.float() - zero_point if self.codes is None else self.codes.decode(codes)


FORMATS = {
    found.name: found
    for found in (
        WeightFormat("int4", 4, 15, "integer", "scale_and_offset", zero_point=8),
        WeightFormat("ternary", 2, 2, "integer", "scale_and_offset", zero_point=1),
        WeightFormat("mxfp4", 4, 15, "e2m1", "four_e8m0", formats.E2M1, formats.E8M0, 0, 32),
        WeightFormat("nvfp4", 4, 15, "e2m1", "four_e4m3", formats.E2M1, formats.E4M3, 0, 16),
        WeightFormat("nf4", 4, 15, "lookup", "one_float32", formats.NF4),
    )
}
