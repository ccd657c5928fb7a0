"""A packed Linear: any leading shape, and the rows one by one.  Book: 6.2"""

from qbook.inference.packed_layer import PackedLayer


class PackedLinear(PackedLayer):
    """x [..., in] float32 -> [..., out] float32.  Subclasses give two things:

    compute:   classmethod, (x [samples, in], *tensors) -> [samples, out], NumPy behind views
    tensors:   property, what ``compute`` and the operator take behind x, in their order
    """

    def __init__(self, linear):
        super().__init__(linear)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def check_codes(self, codes):
        """Raises ValueError unless codes are of the layer's shape [out, in]."""
        if tuple(codes.shape) != (self.out_features, self.in_features):
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} are not of the layer's "
                f"{(self.out_features, self.in_features)}"
            )

    def forward(self, x):
        self.check_input(x, f"[..., {self.in_features}]", x.shape[-1] == self.in_features)
        rows = x.detach().reshape(-1, self.in_features)
        return self.run(rows, *self.tensors).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self):
        bits = 8 * sum(b.numel() * b.element_size() for n, b in self.named_buffers() if n != "bias")
        bits /= max(self.in_features * self.out_features, 1)
        return f"in={self.in_features}, out={self.out_features}, {bits:.2f} bits a weight"
