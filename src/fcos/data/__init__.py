"""From annotation files to batches.

Read in this order: `annotations` (what a data set is), `image_list` (the simplest of the four formats;
`coco`, `voc` and `yolo` follow its pattern), `formats` (the door to all of them; `recognise` and `splits`
behind it), `image` (pixels), `check` (what may be wrong), then `dataset`, `transforms`, `batch`, `sampler`
and `loader` (the way into the network). `text`, `images` and `names` are what the readers share.
"""
