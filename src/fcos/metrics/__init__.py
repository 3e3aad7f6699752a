"""Metrics. Read `coco` (the twelve metrics), `analysis` (where AP is lost), `misses`, `coverage`."""
