"""Training. Read `loop` first, then `step` (one optimizer step); the other files are their parts.

`run` turns settings into the objects of the loop, with its data (`data`) and its folder (`run_folder`).
`length` decides when it ends, `evaluation` runs the model, `optimizer` updates the weights, `ema` averages
them, `checkpoint` saves where the run stands and resumes it, `output` reports all this: `writers` (and
`loggers`) keep the metrics, `log` shows them, `callbacks` get them, `throughput` reports what training waited
for. `devices` and `launch` start the processes, `recompute` trades time for memory, `propose` writes a
train.json for a folder.
"""
