"""HTML of detections for notebooks: the drawn image, and a table of its boxes."""

from __future__ import annotations

from html import escape

from fcos.predict.detections import Detections

MAX_SIDE = 1000  # pixels of the image shown, which is saved in the notebook file
MAX_ROWS = 20


def as_html(detections: Detections) -> str:
    """The image with its boxes, if there is one, above a table of the best detections."""
    columns = ("class", "score", "x1", "y1", "x2", "y2")
    rows = [
        (
            escape(one.class_name(0)),
            f"{float(one.scores):.3f}",
            *(f"{x:.1f}" for x in one.boxes_xyxy[0].tolist()),
        )
        for one in detections[:MAX_ROWS]
    ]
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{name}</th>" for name in columns)
    hidden = len(detections) - len(rows)
    return (
        f"{_image(detections)}<p>{escape(repr(detections))}</p>"
        f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
        + (f"<p>and {hidden} more</p>" if hidden > 0 else "")
    )


def _image(detections: Detections) -> str:
    if detections.image is None:
        return ""
    from fcos.predict.draw import as_base64  # imports matplotlib, so only when drawing

    drawn = detections.draw()
    drawn.thumbnail((MAX_SIDE, MAX_SIDE))
    return f'<img src="data:image/jpeg;base64,{as_base64(drawn, quality=90)}">'
