"""Training. Read `loop` first, then `step` (one optimizer step); the other files are their parts.

`run` turns settings into the objects of the loop, with its data (`data`) and its folder (`run_folder`).
`optimizer` updates the weights, `ema` averages them, `checkpoint` saves and resumes, `writers` keeps the
metrics and `log` shows them, `throughput` reports what training waited for, `stop` handles signals, `devices`
and `launch` start the processes, `recompute` trades time for memory, `propose` writes a train.json for a
folder.
"""
