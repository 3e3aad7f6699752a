"""From annotation files to batches.

Read in this order: `annotations` (what a data set is), `registry` (what a format is), `formats/list` (the
simplest one), `splits` and `convert` (for all formats; re-exported by `formats`), `image` (pixels),
`in_memory` (in-memory data sets, written to files), `check` (problems of a data set), then `batch`,
`transforms`, `balance` and `loader` (from images to batches). The formats share `text`, `numbers`, `names`
and `image_files`.
"""
