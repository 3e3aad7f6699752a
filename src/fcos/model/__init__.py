"""The whole paper in one folder (arXiv 1904.01355 and 2006.09214).

Read in this order: `points` (where the network predicts), `targets` (what it should predict there),
`losses` (how wrong it is), `backbone`, `fpn`, `head`, `fcos` (the network), `postprocess` (predictions to
detections), `weights` and `pretrained` (files). What makes it fast on CPUs can wait: `frozen_norm`,
`winograd`, `inference`, `fused`, `onednn`. Nothing here knows about data sets, training loops or
configuration files.
"""
