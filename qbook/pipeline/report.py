"""What a quantized model costs and what each layer lost, counted on the stored tensors.

Book: 4.5
"""

from typing import NamedTuple

from qbook.pipeline.layers import QuantizedLayer


class Row(NamedTuple):
    """A layer: width, bytes and errors.

    bytes, real_bytes:  of what is stored for it (codes, scales, zero-points, bias), and was before
    bits_per_weight:    8 bytes without the bias, over the number of weights
    weight_error:       |w - w_hat|^2 / |w|^2
    output_error:       the same of its output on the calibration inputs; None without them
    """

    name: str
    shape: tuple
    bits: int
    bits_per_weight: float
    bytes: int
    real_bytes: int
    weight_error: float
    output_error: float | None


class Report(NamedTuple):
    """rows: list of ``Row``;  kept: dict, name of a tensor left real -> bytes;  seconds: in all"""

    rows: list
    kept: dict
    seconds: float

    @property
    def bytes(self):
        return sum(row.bytes for row in self.rows) + sum(self.kept.values())

    @property
    def real_bytes(self):
        return sum(row.real_bytes for row in self.rows) + sum(self.kept.values())

    def __str__(self):
        """A table: one line a layer, then the rest and the sum."""
        width = max([len("layer"), *(len(row.name) for row in self.rows)])
        lines = [f"{'layer':{width}}  bits  per weight       bytes  weight error  output error"]
        for row in self.rows:
            output = "not measured" if row.output_error is None else f"{row.output_error:.2e}"
            lines.append(
                f"{row.name:{width}}  {row.bits:4}  {row.bits_per_weight:10.2f}  {row.bytes:10,}"
                f"  {row.weight_error:12.2e}  {output:>12}"
            )
        kept = sum(self.kept.values())
        lines.append(f"{'kept real':{width}}  {'':4}  {'':10}  {kept:10,}")
        lines.append(f"{'all':{width}}  {'':4}  {'':10}  {self.bytes:10,}  of {self.real_bytes:,}")
        return "\n".join(lines)


def row(name, real, quantized, x=None):
    """Real layer, its ``QuantizedLayer`` and rows x [n, groups, in] it sees, or None -> ``Row``"""
    w_hat = quantized.weight.flatten(1)
    w = real.weight.detach().flatten(1).to(w_hat.dtype)
    stored = {n: _bytes(t) for n, t in quantized.state_dict().items()}
    bias = 0 if real.bias is None else _bytes(real.bias)
    output_error = None
    if x is not None:
        lost, power = 0.0, 0.0
        pairs = zip(_split(w, x.shape[1]), _split(w_hat, x.shape[1]), strict=True)
        for group, (own, own_hat) in enumerate(pairs):
            lost += float(((x[:, group] @ (own - own_hat).T) ** 2).sum())
            power += float(((x[:, group] @ own.T) ** 2).sum())
        output_error = _share(lost, power)
    return Row(
        name,
        tuple(real.weight.shape),
        quantized.bits,
        8 * (sum(stored.values()) - bias) / w.numel(),
        sum(stored.values()),
        _bytes(real.weight) + bias,
        _share(float(((w - w_hat) ** 2).sum()), float((w**2).sum())),
        output_error,
    )


def kept(quantized):
    """-> dict: tensor that no ``QuantizedLayer`` holds -> bytes; a tensor shared is counted once"""
    inside = {
        f"{name}.{own}"
        for name, module in quantized.named_modules()
        if isinstance(module, QuantizedLayer)
        for own in module.state_dict()
    }
    found, seen = {}, set()
    for name, tensor in quantized.state_dict().items():
        if name not in inside and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = _bytes(tensor)
    return found


def _split(w, groups):
    return w.reshape(groups, -1, w.shape[1])


def _share(lost, power):
    return lost / power if power else 0.0


def _bytes(tensor):
    return tensor.numel() * tensor.element_size()
