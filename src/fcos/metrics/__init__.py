"""Measuring detections. Read `coco` (the twelve numbers), `analysis` (what is lost), `misses`, `coverage`."""
