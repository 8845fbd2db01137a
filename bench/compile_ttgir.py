"""What a kernel's TTGIR says: its memory accesses, its products, and the order of its sums.

TTGIR is the last of Triton's forms of a kernel to have tiles, with layouts that say which thread holds what.
Every entry has its place in the source, as a chain of `file:line:column`, innermost first, just as the
assembly gives it for each instruction. Knows nothing about any op.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["Ttgir", "chain"]

_OP = re.compile(r'^\s*(?:(%\w+)(?::\d+)? = )?"?([a-z_]+\.[a-z_0-9.]+)"? ?(.*)$')
_TILE = re.compile(r"(?:tensor|memdesc)<((?:\d+x)+)(?:!tt\.ptr<)?([a-z]+\d+\w*)")
_ACCESSES = {
    "tt.load": "load",
    "ttg.async_copy_global_to_local": "load",
    "amdg.buffer_load": "load",
    "amdg.buffer_load_to_local": "load",
    "tt.store": "store",
    "amdg.buffer_store": "store",
}
_PRODUCTS = ("tt.dot", "ttng.warp_group_dot", "ttng.tc_gen5_mma")
# a copy engine moves whole tiles with these: no thread has a share whose width could be checked
_ENGINE = ("ttng.async_tma_copy_global_to_local",)
# what else moves memory in some version of Triton, named so that none of it goes unread
_UNREAD = re.compile(r"descriptor_|atomic|async_tma|\.gather|dot_scaled|mma_scaled|tt\.call|async_bulk")


def chain(text: str) -> str:
    """The places named in a comment of the assembly: `a.py:1:2 @[ b.py:3:4 ]`, innermost first."""
    return " < ".join(re.findall(r"[\w.-]+\.py:\d+:\d+", text))


class Ttgir:
    """One kernel.

    Attributes:
        accesses: kind, argument, tile, bytes per element and place of each access to global memory.
        products: rows, columns, depth, element, kind of instruction, order and place of each `tl.dot`.
        orders: place → what fixes the order of summation there.
        hasty: places of accesses made before the kernel waits for the preceding launch: all, if it never
            waits.

    Raises:
        ValueError: there is an operation that this cannot read.
    """

    def __init__(self, text: str) -> None:
        self.accesses: list[dict[str, Any]] = []
        self.products: list[dict[str, Any]] = []
        self.orders: dict[str, list[str]] = {}
        self.hasty: list[str] = []
        self._waited = False
        self._layouts = dict(re.findall(r"^(#\w+) = (#tt[a-z]*\..*)$", text, re.M))
        self._places = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", text, re.M))
        self._arguments = set(re.findall(r"(%\w+): !tt\.ptr", text.partition("tt.func public")[2]))
        self._origin: dict[str, str] = {}
        self._read(text.splitlines())

    def _read(self, lines: list[str]) -> None:
        axis, adds = 0, False  # of the reduction whose body is being read
        for line in lines:
            body, _, where = line.rpartition(" loc(")
            where = where.rstrip(")") if body else ""
            found = _OP.match(body or line)
            if not found:
                if line.lstrip().startswith("}) : (") and adds:
                    self._sum(body, axis, where)
                    adds = False
                continue
            result, op, rest = found.groups()
            if _UNREAD.search(op) and op not in _ENGINE:
                raise ValueError(f"cannot read {op}: {line.strip()[:200]}")
            self._trace(result, op, rest)
            self._waited |= "griddepcontrol.wait" in rest
            if (op in _ACCESSES or op in _ENGINE) and not self._waited:
                self.hasty.append(self._place(where))
            if op == "tt.reduce":
                axis, adds = int(re.search(r"axis = (\d+)", rest)[1]), False
            elif op == "arith.addf" and " : f" in rest:  # of scalars: the body of a reduction
                adds = True
            elif op in _ACCESSES:
                self._access(op, rest, where)
            elif op in _PRODUCTS:
                self._product(op, rest, where)

    def _trace(self, result: str | None, op: str, rest: str) -> None:
        """Remember what each value was made from, pointers being the first operand of what moves them."""
        if op == "scf.for":
            inits = re.findall(r"(%\w+) = (%[\w#]+)", rest.partition("iter_args(")[2].partition(") ->")[0])
            self._origin.update(inits)
            for index, (_, init) in enumerate(inits):
                self._origin[f"{result}#{index}"] = init
            if len(inits) == 1:
                self._origin[str(result)] = inits[0][1]
        elif result and (operand := re.search(r"%[\w#]+", rest)):
            self._origin[result] = operand[0]

    def _argument(self, value: str) -> str:
        while value not in self._arguments:
            if value not in self._origin:
                raise ValueError(f"cannot tell which argument {value} points into")
            value = self._origin[value]
        return value[1:]

    def _access(self, op: str, rest: str, where: str) -> None:
        operands, _, types = rest.rpartition(" : ")
        buffer = re.search(r"(%\w+)\[", operands) if op.startswith("amdg") else None
        pointer = buffer[1] if buffer else re.search(r"%[\w#]+", operands)[0]
        tile = _TILE.search(types)
        shape = [int(size) for size in tile[1].split("x")[:-1]] if tile else []
        element = tile[2] if tile else re.search(r"ptr<(\w+)>", types)[1]
        self.accesses.append(
            {
                "kind": _ACCESSES[op],
                "argument": self._argument(pointer),
                "tile": shape,
                "element": _bytes(element),
                "place": self._place(where),
            }
        )

    def _product(self, op: str, rest: str, where: str) -> None:
        operands, _, types = rest.rpartition(" : ")
        (left, element), (right, _) = _TILE.findall(types)[:2]
        rows, depth = (int(size) for size in left.split("x")[-3:-1])  # before them, a batch of products
        columns = int(right.split("x")[-2])
        layout = self._layout(types.rpartition("-> ")[2])
        kind, detail = _instruction(op, layout)
        if kind in ("HMMA", "v_mfma") and (lanes := re.search(r"kWidth = (\d+)", types)):
            detail += f", {lanes[1]} of a row in a thread"
        precision = re.search(r"inputPrecision = (\w+)", operands)
        if precision and element == "f32":
            detail += f", {precision[1]}"
        place = self._place(where)
        # sixteen products after sixteen into the same accumulators, however deep the block (seen on an H200)
        deep = "" if kind == "HGMMA" and _bytes(element) == 2 else f", {depth} deep"
        order = f"product of {element} by {kind}{detail}{deep}"
        self.products.append(
            {
                "rows": rows,
                "columns": columns,
                "depth": depth,
                "element": element,
                "kind": kind,
                "order": order,
                "place": place,
            }
        )
        self._note(place, order)

    def _sum(self, line: str, axis: int, where: str) -> None:
        types = line.partition(" : (")[2].partition(") ->")[0]
        size = int(_TILE.search(types)[1].split("x")[axis])
        layout = _along(self._layout(types), axis, self._layouts)
        self._note(self._place(where), f"sum of {size} in {layout}")

    def _note(self, place: str, order: str) -> None:
        orders = self.orders.setdefault(place, [])
        if order not in orders:
            orders.append(order)

    def _layout(self, type_text: str) -> str:
        """The layout of the first tile of a type, its alias resolved."""
        layout = type_text.partition(", ")[2].rstrip()
        layout = layout[:-1] if layout.endswith(">") else layout
        return self._layouts.get(layout, layout)

    def _place(self, text: str) -> str:
        text = self._places.get(text, text)
        if call := re.fullmatch(r"callsite\((#loc\d*) at (#loc\d*)\)", text):
            parts = (self._place(call[1]), self._place(call[2]))
            return " < ".join(part for part in parts if part)
        if named := re.fullmatch(r'"[^"]*"\((#loc\d*)\)', text):
            return self._place(named[1])
        file = re.fullmatch(r'"([^"]*)":(\d+):(\d+)', text)
        return f"{file[1].rpartition('/')[2]}:{file[2]}:{file[3]}" if file else ""


def _bytes(element: str) -> int:
    return max(1, int(re.search(r"\d+", element)[0]) // 8)


def _vector(layout: str, name: str) -> list[int]:
    return [int(number) for number in re.search(rf"{name} = \[([\d, ]*)\]", layout)[1].split(",")]


def _instruction(op: str, layout: str) -> tuple[str, str]:
    """The kind of matrix instruction, and what in its shape affects the order of a sum."""
    if op == "ttng.tc_gen5_mma":
        return "UTCMMA", ""
    if "nvidia_mma" in layout:
        shape = _vector(layout, "instrShape")
        return ("HGMMA", f" k{shape[2]}") if "versionMajor = 3" in layout else ("HMMA", "")
    if "amd_mfma" in layout:
        return "v_mfma", " " + "x".join(map(str, _vector(layout, "instrShape")))
    if "blocked" in layout:
        return "FMA", ""
    raise ValueError(f"cannot tell the instruction of {op} in {layout}")


def _along(layout: str, axis: int, layouts: dict[str, str]) -> str:
    """The part of a layout that decides which lane of which thread holds what along `axis`."""
    if nested := re.fullmatch(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>", layout):
        gone = int(nested[1])
        return _along(layouts.get(nested[2], nested[2]), axis + (axis >= gone), layouts)
    if "blocked" in layout:
        names = ("sizePerThread", "threadsPerWarp", "warpsPerCTA")
        return "blocked " + " · ".join(f"{_vector(layout, name)[axis]}" for name in names)
    if "ttg.linear" in layout:
        parts = []
        for name in ("register", "lane", "warp"):
            bases = re.findall(
                r"\[([\d, ]+)\]", re.search(rf"{name} = \[(.*?)\](?:, [a-z]|\}})", layout)[1] + "]"
            )
            steps = [int(base.split(",")[axis]) for base in bases]
            parts.append(f"{name}s {[step for step in steps if step]}")
        return "linear " + ", ".join(parts)
    if "nvidia_mma" in layout:  # two neighbours in a thread, four threads to a row, in versions 2 and 3 alike
        return f"an NVIDIA accumulator, axis {axis}, {_vector(layout, 'warpsPerCTA')[axis]} warps"
    if "amd_mfma" in layout:
        shape, flipped = _vector(layout, "instrShape"), "isTransposed = true" in layout
        warps = _vector(layout, "warpsPerCTA")[axis]
        return f"an AMD accumulator {shape[:2]}, axis {axis}, {warps} warps, transposed {flipped}"
    raise ValueError(f"cannot read the layout {layout}")
