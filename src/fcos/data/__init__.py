"""From annotation files to batches.

Read in this order: `annotations` (what a data set is), `registry` (what a format is), `formats/list` (the
simplest one), `splits` and `convert` (what works for all formats; `formats` offers it), `image` (pixels),
`in_memory` (data of a program become files), `check` (what may be wrong), then `batch`, `transforms`,
`balance` and `loader` (the way into the network).
`text`, `numbers`, `names` and `image_files` are what the formats share.
"""
