"""The training engine. Read `train` first: it is the loop; the other files are its words.

`schedule` and `optimizer settings` (in `fcos.build`) say how a step is made, `ema` what is averaged,
`evaluate` how every image is measured once, `checkpoint` what is kept, `log` what is written and shown,
`devices` where it runs.
"""
