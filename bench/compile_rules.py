"""The rules for a compiled kernel, and whether the configurations of one op sum in the same order.

An entry is what `compile_readers.read` gave for one kernel, and what it was called with: `op`, `kernel`,
`target`, `dtype`, `model`, `setting`, `configuration`, and `tensors`: argument → shape and whether it is of
floats.

The 16-byte rule is for operand tiles: accesses through an argument that is a float matrix whose rows have
a multiple of 8 elements, 64 or more, and of a tile with two rows or more, or 256 elements or more of one row.
It is not for biases and LayerNorm weights (vectors), nor ids and cu_seqlens (integers).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import prod
from typing import Any

__all__ = ["PRODUCTS", "absent", "broken", "disagreements", "operands"]

Entry = dict[str, Any]

# the ops that multiply matrices
PRODUCTS = ("cls_attention", "linear", "linear_gelu", "packed_attention", "pool_classify")
_LONG_ROW = 256  # elements
_LABELS = 64  # a matrix with fewer columns holds labels: no stride that 16 divides, and nothing to gain
_TENSOR_MEMORY = 512  # columns, of sm_100
_MATRIX_UNIT = {"sm_80": {"HMMA"}, "sm_90": {"HMMA", "HGMMA"}, "sm_100": {"HMMA", "UTCMMA"}}


def broken(entry: Entry, limit: int) -> list[str]:
    """The rules that one kernel breaks, in words. limit: shared memory of the target, in bytes."""
    if "error" in entry:
        return [f"does not compile: {entry['error']}"]
    found = []
    if entry["shared"] > limit:
        found.append(f"shared memory: {entry['shared']:,} bytes of {limit:,}")
    if entry["tensor_memory"] > _TENSOR_MEMORY:
        found.append(f"tensor memory: {entry['tensor_memory']} columns of {_TENSOR_MEMORY}")
    if entry["spilled"]:
        found.append(f"spills: {entry['spilled']} bytes a thread")
    if entry["dtype"] == "float32" and entry["tf32"]:
        found.append("TF32 in a float32 kernel")
    for place in entry["hasty"]:
        found.append(f"touches memory before the launch before has ended: {place}")
    return found + _products(entry) + _widths(entry)


def _products(entry: Entry) -> list[str]:
    """16-bit products run on matrix units, on sm_90 those of 64 rows or more on asynchronous ones; and the
    binary has every kind of instruction that TTGIR chose."""
    found, target = [], entry["target"]
    elements = {product["element"] for product in entry["products"]}
    if elements == {"f32"} and entry["dtype"] != "float32":
        found.append("no product on matrix units: all operands are widened to float32")
    for product in entry["products"]:
        kind = product["kind"]
        name = (
            f"product {product['rows']} x {product['columns']} x {product['depth']} of {product['element']}"
        )
        if product["element"] in ("f16", "bf16"):
            allowed = _MATRIX_UNIT.get(target, {"v_mfma"})
            if target == "sm_90" and product["rows"] >= 64:
                allowed = {"HGMMA"}
            if kind not in allowed:
                found.append(f"{name} by {kind}, not {' or '.join(sorted(allowed))}: {product['place']}")
        if kind != "FMA" and kind not in entry["matrix"]:
            found.append(f"{name} by {kind}, of which the binary has none: {product['place']}")
    return found


def operands(entry: Entry) -> list[dict[str, Any]]:
    """The accesses that have to be 16 bytes at a time."""
    found = []
    for access in entry["accesses"]:
        tensor = entry["tensors"].get(access["argument"])
        matrix = tensor and tensor["float"] and len(tensor["shape"]) == 2
        matrix = matrix and tensor["shape"][-1] % 8 == 0 and tensor["shape"][-1] >= _LABELS
        tall = sum(size > 1 for size in access["tile"]) > 1
        if matrix and (tall or prod(access["tile"]) >= _LONG_ROW):
            found.append(access)
    return found


def _widths(entry: Entry) -> list[str]:
    """16 bytes at a time. gfx942 may store 8: its accumulators hold four in a row. Where a product
    makes a tile smaller than 16 bytes a thread, each thread takes its share at once."""
    found = []
    for access in operands(entry):
        least = 8 if access["kind"] == "store" and entry["target"].startswith("gfx") else 16
        if entry["products"]:
            least = min(least, _tile_bytes(access) // entry["threads"])
        got = min(access["widths"], default=0)
        if got < least:
            tile = " x ".join(map(str, access["tile"]))
            found.append(
                f"{access['kind']} of {tile} at {access['argument']}, {got} bytes at a time, not {least}: "
                f"{access['place']}"
            )
    return found


def _tile_bytes(access: dict[str, Any]) -> int:
    return prod(access["tile"]) * access["element"]


def absent(entries: Iterable[Entry]) -> list[str]:
    """Ops meant to multiply matrices that do not on some target."""
    products: dict[tuple[str, str, str], int] = defaultdict(int)
    for entry in entries:
        if entry["op"] in PRODUCTS:
            products[entry["op"], entry["target"], entry["dtype"]] += len(entry.get("products", ()))
    return [f"{' '.join(key)}: no tl.dot" for key, count in products.items() if not count]


def disagreements(entries: Iterable[Entry]) -> list[str]:
    """Where two configurations of one op, dtype, model and target sum a row in different orders.

    Each place in the source, with its calls, is compared with itself: a path that one configuration leaves
    out is not missed, and the paths of short and long pairs are not compared.
    """
    groups: dict[tuple[str, ...], dict[str, dict[tuple[str, ...], str]]] = {}
    for entry in entries:
        key = tuple(entry[name] for name in ("op", "target", "dtype", "model", "kernel"))
        for place, orders in entry.get("orders", {}).items():
            described = f"{entry['configuration']}, {entry['setting']}"
            seen = groups.setdefault(key, {}).setdefault(place, {})
            seen.setdefault(tuple(sorted(orders)), described)
    found = []
    for key, places in groups.items():
        for place, seen in places.items():
            if len(seen) > 1:
                ways = "; ".join(f"{' and '.join(order)} ({which})" for order, which in seen.items())
                found.append(f"{' '.join(key)}: sums differ at {place}: {ways}")
    return found
