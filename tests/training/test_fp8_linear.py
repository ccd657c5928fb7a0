import copy

import numpy as np
import pytest
import torch
from torch import nn

from qbook.formats import E4M3, E5M2, scaled
from qbook.training import fp8_linear, fp8_scaling
from qbook.training.fp8_linear import RECIPES, Fp8Linear

SCALED = ("current", "delayed", "blockwise")


def gaussian(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def seven_times_powers(shape, seed):
    """0 or +-7 * 2^j: in both formats, whatever power of two or 7/448 * 2^j is the scale"""
    rng = np.random.default_rng(seed)
    values = 7 * 2.0 ** rng.integers(-2, 3, shape) * rng.choice([-1, 0, 1], shape)
    return torch.from_numpy(values.astype(np.float32))


def run(layer, x, g):
    """-> y, and the gradients of x, weight and bias for the gradient g at the output"""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(g)
    bias = None if layer.bias is None else layer.bias.grad
    return y.detach(), x.grad, layer.weight.grad, bias


def make(w, recipe, *, bias=True, **settings):
    """-> nn.Linear with these weights, and its conversion"""
    linear = nn.Linear(w.shape[1], w.shape[0], bias)
    linear.weight.data = w.clone()
    return linear, fp8_linear.convert(linear, recipe=recipe, **settings)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("lead", "in_", "out"), [((), 3, 2), ((5,), 1, 7), ((2, 3), 130, 129), ((1, 1, 9), 33, 300)]
)
def test_where_rounding_changes_nothing_the_layer_is_torchs(recipe, bias, lead, in_, out):
    x, g = seven_times_powers((*lead, in_), 0), seven_times_powers((*lead, out), 1)
    linear, layer = make(seven_times_powers((out, in_), 2), recipe, bias=bias)
    if bias:
        linear.bias.data = seven_times_powers((out,), 3)
        layer.bias.data = linear.bias.data.clone()
    # All sums are multiples of 49 / 16 below 2^24 of these: exact in float32, in any order.
    for expected, found in zip(run(linear, x, g), run(layer, x, g), strict=True):
        assert (expected is None) == (found is None)
        assert expected is None or torch.equal(expected, found)


def by_tables(x, w, g):
    """The three products in float64 of values rounded by the tables of qbook.formats"""

    def rounded(tensor, fmt):
        # By 1 / scale, the factor itself: in float32 the scale has one more rounding.
        factor = fmt.max / tensor.abs().max().item()
        return fmt.round(tensor * np.float32(factor)).double() / float(np.float32(factor))

    x_hat, w_hat, g_hat = rounded(x, E4M3), rounded(w, E4M3), rounded(g, E5M2)
    sizes = [a.abs() @ b.abs() for a, b in ((x_hat, w_hat.T), (g_hat, w_hat), (g_hat.T, x_hat))]
    return (x_hat @ w_hat.T, g_hat @ w_hat, g_hat.T @ x_hat), sizes


@pytest.mark.parametrize(("n", "in_", "out"), [(1, 1, 1), (7, 33, 5), (40, 128, 300)])
def test_current_scaling_is_three_products_of_rounded_matrices(n, in_, out):
    x, w, g = gaussian((n, in_)), gaussian((out, in_), 1), 1e-6 * gaussian((n, out), 2)
    found = run(make(w, "current", bias=False)[1], x, g)
    expected, sizes = by_tables(x, w, g)
    for got, right, size in zip(found, expected, sizes, strict=False):
        # One rounding of float32 for each term, and three of the factors.
        assert ((got - right).abs() <= (max(n, in_, out) + 4) * 2.0**-23 * size).all()


def test_all_three_products_are_torchs_scaled_mm():
    x, w, g = gaussian((32, 48)), gaussian((16, 48), 1), 1e-5 * gaussian((32, 16), 2)
    found = run(make(w, "current", bias=False)[1], x, g)
    codes, scales = {}, {}
    for name, tensor in {"x": x, "w": w, "g": g}.items():
        dtype = torch.float8_e5m2 if name == "g" else torch.float8_e4m3fn
        factor = torch.finfo(dtype).max / tensor.abs().max().double()
        codes[name] = (tensor * factor.float()).to(dtype)
        scales[name] = (1 / factor).float()
    pairs = (("x", "w", False, True), ("g", "w", False, False), ("g", "x", True, False))
    for got, (a, b, a_turned, b_turned) in zip(found, pairs, strict=False):
        left = codes[a].T.contiguous() if a_turned else codes[a]
        # The right operand lies column after column, as the product wants it.
        right = codes[b].T if b_turned else codes[b].T.contiguous().T
        expected = torch._scaled_mm(left, right, scales[a], scales[b], out_dtype=torch.float32)
        # Sums of at most 48 products in another order, scaled by rounded numbers.
        size = (left.float().abs() @ right.float().abs()) * scales[a] * scales[b]
        assert ((got - expected).abs() <= 52 * 2.0**-23 * size).all()


def rounded_along(tensor, axis):
    """Tiles of 128 along an axis, each scaled by its own largest magnitude"""
    parts = [
        scaled.fake_quantize(part, E4M3, scaled.absmax_scale(part, E4M3, axis=axis))
        for part in tensor.split(128, dim=axis)
    ]
    return torch.cat(parts, dim=axis)


def test_blockwise_tiles_run_along_the_axis_that_is_summed_over():
    # Columns and rows of very different size: a tile along the wrong axis shows.
    x = gaussian((150, 140)) * torch.logspace(-3, 3, 140) * torch.logspace(-2, 2, 150)[:, None]
    g = gaussian((150, 260), 2) * torch.logspace(-4, 2, 260) * torch.logspace(3, -3, 150)[:, None]
    w = gaussian((260, 140), 1)
    y, dx, dw, _ = run(make(w, "blockwise", bias=False)[1], x, g)
    squares = [
        torch.cat(
            [
                scaled.fake_quantize(part, E4M3, scaled.absmax_scale(part, E4M3))
                for part in rows.split(128, dim=1)
            ],
            dim=1,
        )
        for rows in w.split(128)
    ]
    w_hat = torch.cat(squares)
    expected = (
        rounded_along(x, 1) @ w_hat.T,
        rounded_along(g, 1) @ w_hat,
        rounded_along(g, 0).T @ rounded_along(x, 0),
    )
    for found, right in zip((y, dx, dw), expected, strict=True):
        # A code may differ where x / scale and x * (1 / scale) fall on two sides of a tie.
        error = (found - right).norm() / right.norm()
        assert error <= 1e-3


def test_the_first_delayed_step_has_factor_one_and_the_second_knows_the_first():
    layer = make(gaussian((3, 5), 1), "delayed", history=2)[1]
    x, g = gaussian((4, 5)), gaussian((4, 3), 2)
    for k, scale in enumerate((1.0, 8.0, 2.0, 2.0)):
        used = {}
        original = layer.factor
        layer.factor = lambda n, t, original=original, used=used: used.setdefault(n, original(n, t))
        run(layer, scale * x, scale * g)
        del layer.factor
        # The largest of the last two steps, in units of the first.
        before = (None, 1.0, 8.0, 8.0)[k]
        for name, tensor, top in (("x", x, 448.0), ("g", g, 57344.0)):
            largest = tensor.abs().max()
            expected = torch.tensor(1.0) if before is None else torch.tensor(top) / largest / before
            assert abs(used[name] / expected - 1) <= 2**-22
    assert layer.delayed["x"].amax.shape == (2,)


def test_a_jump_beyond_the_history_saturates():
    w = torch.eye(4)
    layer = make(w, "delayed", bias=False)[1]
    x = torch.tensor([[1.0, 0.5, 0.0, -1.0]])
    layer(x)
    assert torch.equal(layer(3 * x), torch.tensor([[1.0, 1.0, 0.0, -1.0]]))
    # The jump is in the history now.
    assert abs(layer(3 * x).abs().max() - 3) <= 2**-20
    roomy = make(w, "delayed", bias=False, margin=2)[1]
    roomy(x)
    assert ((roomy(3 * x) - 3 * x).abs() <= 3 * x.abs() / 17).all()


def test_gradients_as_small_as_float32_has_them_pass():
    x, w, g = gaussian((4, 5)), gaussian((3, 5), 1), gaussian((4, 3), 2)
    plain, tiny = run(make(w, "current")[1], x, g), run(make(w, "current")[1], x, 2.0**-120 * g)
    for big, small in zip(plain[1:3], tiny[1:3], strict=True):
        # The factor ends at float32's largest number: some values round differently.
        assert (2.0**120 * small - big).norm() <= 0.05 * big.norm()


def test_a_layer_in_eval_mode_takes_no_note():
    layer = make(gaussian((3, 5), 1), "delayed")[1].train()
    layer(gaussian((4, 5)))
    before = layer.delayed["x"]
    layer.eval()(100 * gaussian((4, 5)))
    assert layer.delayed["x"] is before
    assert before.amax[-1] > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_gradient_that_is_not_finite_does_not_pass_as_a_number(recipe):
    layer = make(gaussian((3, 5), 1), recipe)[1]
    x, g = gaussian((4, 5)), gaussian((4, 3), 2)
    g[1, 1] = torch.nan
    if recipe == "blockwise":
        with pytest.raises(ValueError, match="NaN or infinity"):
            run(layer, x, g)
    else:
        assert run(layer, x, g)[2][1].isnan().all()


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4, bias=False))
        self.again = self.body[0]
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.body(self.embedding(ids)))


def test_conversion_keeps_names_numbers_and_ties():
    model = Toy().eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    converted = fp8_linear.convert(model, recipe="delayed", margin=1, history=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert converted.load_state_dict(before)
    assert model.load_state_dict(converted.state_dict())
    assert [type(m) for m in model.body] == [nn.Linear, nn.GELU, nn.Linear]
    assert isinstance(converted.body[0], Fp8Linear)
    assert converted.body[0] is converted.again
    assert converted.head.weight is converted.embedding.weight is not model.embedding.weight
    assert converted.body[2].bias is None
    assert not converted.body[2].training
    assert (converted.body[0].margin, converted.body[0].history) == (1, 7)
    converted(torch.arange(6))
    assert list(converted.state_dict()) == list(before)
    assert "recipe=delayed" in repr(converted.body[0])


def test_what_is_skipped_stays_and_its_namesakes_do_not():
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "head2": nn.Linear(2, 2), "body": Toy()})
    converted = fp8_linear.convert(model, skip=("head", "body.body"))
    assert type(converted["head"]) is nn.Linear
    assert isinstance(converted["head2"], Fp8Linear)
    assert [type(m) for m in converted["body"].body] == [nn.Linear, nn.GELU, nn.Linear]
    assert isinstance(converted["body"].head, Fp8Linear)


def train(model, *, factor, steps=60):
    """Least squares on a fixed target, SGD, loss times factor -> the last loss"""
    x = gaussian((64, 16), 5)
    target = torch.tanh(x @ gaussian((16, 3), 6))
    for _ in range(steps):
        loss = ((model(x) - target) ** 2).mean()
        grads = torch.autograd.grad(factor * loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.3 / factor * g
    return loss.item()


def test_scaled_recipes_train_where_gradients_vanish_without_a_scale():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 3))
    exact = train(copy.deepcopy(model), factor=1e-6)
    losses = {r: train(fp8_linear.convert(model, recipe=r), factor=1e-6) for r in RECIPES}
    first = train(copy.deepcopy(model), factor=1.0, steps=1)
    assert exact < 0.3 * first
    for recipe in ("current", "blockwise"):
        assert losses[recipe] < 1.1 * exact
    # Its first step has no factor and loses the gradient of the weights; then it catches up.
    assert losses["delayed"] < 1.2 * exact
    # Only the biases learn, whose gradient passes through no product.
    assert losses["unscaled"] > 0.6 * first


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="recipe='naive'"):
        Fp8Linear(2, 2, recipe="naive")
    with pytest.raises(ValueError, match="recipe='naive'"):
        fp8_linear.convert(Toy(), recipe="naive")
    with pytest.raises(ValueError, match="skip='tail'"):
        fp8_linear.convert(Toy(), skip=("tail",))
    with pytest.raises(ValueError, match="length=0"):
        make(torch.eye(2), "delayed", history=0)[1](torch.ones(2))


def test_a_factor_is_ready_before_anything_was_seen():
    layer = Fp8Linear(2, 3, recipe="delayed").eval()
    assert layer.factor("x", torch.ones(2)) == 1
    assert layer.delayed == {}
    assert layer.history == fp8_scaling.HISTORY
