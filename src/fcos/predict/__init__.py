"""`fcos predict` without its printing: what its arguments mean, images, videos, tracks.

Read `sources`, then `pictures`; for videos `video_reader`, `video_writer`, `tracker` and `video`, which joins
them. What runs beside what is in `fcos.stream`.
"""
