"""From images to detections.

Read `predictor` first (images to `Detections`), then `backend` (what computes them), `detect` (the loop over
batches), `detections` and `draw`. `stream` runs reading, network and drawing side by side. `fcos predict` has
`sources` (what its arguments mean), `pictures` (images), and `video`, which joins `video_reader`,
`video_writer` and `tracker`.
"""
