"""Allocation: one width for each layer, the least total cost that the budgets allow.

    min  sum_l cost[l, k_l]   subject to   sum_l use[l, k_l] <= limit,   for every budget

An integer programme, one binary variable for each layer and width: Yao et al. 2021 (HAWQ-V3),
arXiv:2011.10680.  With a price on the use in place of the limit every layer decides alone:
Shoham and Gersho 1988, doi:10.1109/29.90373.  Book: 3.3.1
"""

import numpy as np


def allocate(costs, budgets):
    """-> the width of each layer, an index [layers] into the columns of costs; a true optimum.

    costs:    [layers, widths], any unit, may be negative
    budgets:  dict, name -> (use [layers, widths], limit), such as bytes or BOPs
    Costs and limits are kept to a millionth of the largest entry, the solver's precision.  Raises
    ValueError for shapes that do not fit, for NaN or infinity, and where nothing fits: it names the
    smallest limit that would.
    """
    costs = _checked(costs)
    uses = {name: _checked(use, costs.shape, name) for name, (use, _) in budgets.items()}
    limits = {name: float(limit) for name, (_, limit) in budgets.items()}
    best = _solve(costs, uses, limits)
    if best is None:
        raise ValueError(_what_would_work(uses, limits))
    return best


def total(table, widths):
    """table [layers, widths], index of each layer's width [layers] -> the sum of the entries."""
    return float(np.take_along_axis(np.asarray(table), np.asarray(widths)[:, None], 1).sum())


def allocate_by_price(costs, use, limit):
    """-> index [layers]: the least cost + price * use at the lowest price that fits the limit.

    For one budget, without a solver.  Only assignments on the lower convex hull of (use, cost) have
    a price, so that up to one layer's step of the budget may stay unspent.  Arguments and errors as
    for ``allocate``.
    """
    costs = _checked(costs)
    use = _checked(use, costs.shape, "use")
    # The choice changes only where two widths of one layer cost the same in all.
    cheaper = costs[:, :, None] - costs[:, None, :]
    saved = use[:, None, :] - use[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        prices = np.where(saved > 0, cheaper / saved, 0)
    prices = np.unique(prices[prices >= 0])
    low, high = 0, len(prices) - 1
    while low < high:
        middle = (low + high) // 2
        if total(use, _at_price(costs, use, prices[middle])) <= limit:
            high = middle
        else:
            low = middle + 1
    best = _at_price(costs, use, prices[high])
    if not total(use, best) <= limit:
        raise ValueError(_what_would_work({"use": use}, {"use": limit}))
    return best


def _at_price(costs, use, price):
    """The width of least cost + price * use in every layer; of equals the one of least use."""
    combined = costs + price * use
    least = combined.min(axis=1, keepdims=True)
    # The critical prices are quotients: equality holds up to rounding.
    equal = combined <= least + 1e-12 * (np.abs(costs) + price * np.abs(use))
    return np.where(equal, use, np.inf).argmin(axis=1)


def _solve(costs, uses, limits):
    """-> index [layers], or None where nothing fits."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, widths = costs.shape
    constraints = [LinearConstraint(np.kron(np.eye(layers), np.ones(widths)), 1, 1)]
    for name, use in uses.items():
        # The solver's tolerances are absolute: give it numbers of size 1.
        unit = np.abs(use).max() or 1.0
        constraints.append(LinearConstraint(use.ravel() / unit, -np.inf, limits[name] / unit))
    # What a layer costs at best is spent anyway; the rest is what the choice is about.
    regret = costs - costs.min(axis=1, keepdims=True)
    found = milp(
        (regret / (regret.max() or 1.0)).ravel(),
        integrality=np.ones(costs.size),
        bounds=Bounds(0, 1),
        constraints=constraints,
        # The solver's own gap of 1e-4 is not an optimum.
        options={"mip_rel_gap": 0},
    )
    if found.x is None:
        return None
    return found.x.reshape(layers, widths).argmax(axis=1)


def _what_would_work(uses, limits):
    smallest = {name: use.min(axis=1).sum() for name, use in uses.items()}
    tight = [name for name in uses if not smallest[name] <= limits[name]]
    if tight:
        return "; ".join(
            f"the budget {name}={limits[name]:.10g} fits no assignment; the smallest possible is "
            f"{smallest[name]:.10g}"
            for name in tight
        )
    # Each budget fits alone: leave the first as open as the others need.
    first, *others = uses
    widths = _solve(uses[first], {name: uses[name] for name in others}, limits)
    if widths is None:
        return f"no assignment fits the budgets {', '.join(others)} together; raise one of them"
    return (
        f"no assignment fits all budgets together; within the others the smallest {first} possible "
        f"is {total(uses[first], widths):.10g}, not {limits[first]:.10g}"
    )


def _checked(table, shape=None, name="costs"):
    table = np.asarray(table, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"{name} has shape {table.shape}; give [layers, widths]")
    if shape is not None and table.shape != shape:
        raise ValueError(f"{name} has shape {table.shape}; the costs have {shape}")
    if not np.all(np.isfinite(table)):
        raise ValueError(f"{name} holds NaN or infinity; give finite numbers")
    return table
