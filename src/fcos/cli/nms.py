"""The option of how detections of different classes compete."""

from __future__ import annotations

import click

agnostic_nms_option = click.option(
    "--agnostic-nms",
    is_flag=True,
    default=None,
    help="NMS over all classes together: an object gets one box; default: the model's own setting.",
)
