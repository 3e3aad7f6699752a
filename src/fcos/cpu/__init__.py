"""What makes the network fast on CPUs, applied to a plain model from outside.

Two calls: `training.for_training` and `predicting.for_predicting`. Their pieces, each with its measured
worth at the top of its file: `fold` (batch norm), `winograd` (large convolutions), `fuse` (activations and
shortcuts; its calls are in `onednn`), `first_layers` (batches), `normalize` (pixels). `memory` is for the
process as a whole.

Unless a file says otherwise, its worth is a ratio of processor times of one thread, measured in alternation.
"""
