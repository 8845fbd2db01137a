"""The training curve as a picture: both losses over the steps."""

from __future__ import annotations

__all__ = ["draw_curve"]

from collections.abc import Sequence
from pathlib import Path


def draw_curve(curve: Sequence[dict[str, float]], file: Path) -> bool:
    """Write a PNG with a line for each of mlm_loss and nsp_loss (nats); False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # not pyplot, which would look for a display
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    steps = [point["step"] for point in curve]
    titles = {"mlm_loss": "masked words", "nsp_loss": "next sentence"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        axes.plot(steps, [point[name] for point in curve])
        axes.set(title=title, xlabel="step", ylabel="loss (nats)")
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    return True
