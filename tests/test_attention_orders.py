"""The experiment with the order of attention's programs: no order has other bits."""

from __future__ import annotations

from itertools import product

import attention_orders as orders
import pytest
import torch

from segue.kernels import packed_attention


def test_the_script_compares_all_orders_with_the_kernel_in_use(capsys, monkeypatch):
    monkeypatch.setattr(orders, "_workloads", lambda tokens: {"some": [66, 40, 3]})
    orders.main(["--smoke"])
    rows = [row.strip("| ").split(" | ") for row in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2] for row in rows] == ["in use", *(order for order, _ in orders.ORDERS)]
    assert all(float(microseconds) > 0 for row in rows for microseconds in row[4:])


@pytest.mark.parametrize(("heads", "lengths"), [(3, [5, 0, 25, 32]), (5, [70, 33, 4, 0])])
def test_no_order_has_other_bits(heads, lengths):
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    qkv = torch.randn(sum(lengths), 3 * 32 * heads).half()
    expected = packed_attention(qkv, bounds, heads, longest=max(lengths))
    for order in product({order for order, _ in orders.ORDERS}, (False, True)):
        out = torch.full_like(expected, torch.nan)
        orders.ordered(qkv, bounds, heads, order, longest=max(lengths), out=out)
        assert torch.equal(out, expected), order
