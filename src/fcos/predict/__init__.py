"""From images to detections.

Read `pipeline` first (images to `Detections`, and the backends that compute them), then `detections` and
`draw`. `predictor` has the methods that users call; `stream` overlaps reading, the network and drawing. For
`fcos predict` there are `sources` (its arguments), `images` (drawn copies and results), and `video`, which
combines `video_reader`, `video_writer` and `tracker`.
"""
