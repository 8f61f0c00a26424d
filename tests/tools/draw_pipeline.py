"""Draw the picture of the pipeline at the top of README.md.

python tests/tools/draw_pipeline.py pipeline_classifier/images/pipeline.png
"""

import sys

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INPUT, FRONT_END, DETECTION, OUTPUT = "#dfe9f5", "#e6f2df", "#fbe8cd", "#f1e1ee"
BOXES = {  # name: (x, y, colour, text)
    "filterbank": (0.0, 2.0, INPUT, ".fil, 1 to 32 bits"),
    "PSRDADA ring": (0.0, 1.0, INPUT, "from TransientX"),
    "pages on disk": (0.0, 0.0, INPUT, ".npy, dedispersed"),
    "cleaning": (1.3, 2.0, FRONT_END, "channel mask,\nbaseline, zero-DM"),
    "dedispersion": (2.6, 2.0, FRONT_END, "a time series for\nevery trial DM"),
    "pages": (2.6, 1.0, FRONT_END, "256 trial DMs by\n256 samples"),
    "page classifier": (3.9, 2.0, DETECTION, "a probability for\nevery page"),
    "candidate classifier": (3.9, 0.0, DETECTION, "a probability for\nevery peak"),
    "predictions": (5.2, 2.0, OUTPUT, "two .npy files"),
    "events": (5.2, 0.0, OUTPUT, "lists, pictures,\nHTML report"),
}
ARROWS = [  # from, to, text
    ("filterbank", "cleaning", ""),
    ("cleaning", "dedispersion", ""),
    ("dedispersion", "pages", ""),
    ("PSRDADA ring", "pages", ""),
    ("pages on disk", "pages", ""),
    ("pages", "page classifier", ""),
    ("page classifier", "predictions", ""),
    ("page classifier", "candidate classifier", "peaks of pages with\nprobability >= 0.05"),
    ("candidate classifier", "events", ""),
]
WIDTH, HEIGHT = 1.02, 0.6


def main(path: str) -> None:
    figure = Figure(figsize=(11.5, 4.6), dpi=100)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set(xlim=(-0.6, 5.8), ylim=(-0.45, 2.45))
    axis.axis("off")
    boxes = {}
    for name, (x, y, colour, text) in BOXES.items():
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        style = "round,pad=0,rounding_size=0.06"
        boxes[name] = FancyBboxPatch(corner, WIDTH, HEIGHT, style, facecolor=colour, edgecolor="0.35", lw=1.4)
        axis.add_patch(boxes[name])
        axis.text(x, y + 0.15, name, ha="center", va="center", weight="bold", fontsize=10.5)
        axis.text(x, y - 0.1, text, ha="center", va="center", fontsize=9, color="0.2")
    for start, end, text in ARROWS:
        ends = [BOXES[name][:2] for name in (end, start)]
        arrow = {"arrowstyle": "-|>", "color": "0.35", "lw": 1.4, "patchA": boxes[start], "patchB": boxes[end]}
        axis.annotate("", *ends, arrowprops=arrow | {"shrinkA": 3, "shrinkB": 3})
        if text:
            (x, y), (x0, y0) = ends
            axis.text((x + x0) / 2 + 0.07, (y + y0) / 2, text, va="center", fontsize=9, color="0.2")
    figure.savefig(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
