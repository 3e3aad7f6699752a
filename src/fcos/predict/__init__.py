"""From images to detections.

Read `pipeline` first (images to `Detections`, and the backends that compute them), then `detections` and
`draw`. `predictor` is what users call; `stream` runs reading, network and drawing concurrently. For
`fcos predict` there are `sources` (what its arguments mean, where drawn copies go), and `video`, which joins
`video_reader`, `video_writer` and `tracker`.
"""
