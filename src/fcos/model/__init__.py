"""The whole paper in one folder (arXiv 1904.01355 and 2006.09214).

Read in this order: `points` (where the network predicts), `assign` (what it should predict there), `losses`
(how wrong it is), `backbone` with `frozen_norm`, `fcos` (pyramid, head, the network), `postprocess`
(predictions to detections), `build` (settings to all of these). Nothing here knows about data sets,
training loops or the processor that it runs on.
"""
