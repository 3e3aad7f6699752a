"""Training. Read `loop` first, then `step` (one optimizer step); the other files support them.

`run` builds everything that the loop needs from the settings, with its data (`data`) and folder
(`run_folder`). `length` decides when training ends, `evaluation` runs the model, `optimizer` updates the
weights, `ema` averages them, `checkpoint` saves and restores the state of the run. `output` reports progress:
`writers` (and `loggers`) log the metrics, `log` displays them, `callbacks` receive them, and `throughput`
reports the bottleneck. `devices` and `launch` start the processes, `recompute` trades time for memory,
`propose` writes a train.json for a folder.
"""
