"""The training engine. Read `train` first: it is the loop; the other files are its words.

`run` makes the objects of the loop from settings and gives them a folder. `schedule`, and `build_optimizer`
in `fcos.build`, say how a step is made, `ema` what is averaged, `evaluate` how every image is measured once,
`checkpoint` what is kept, `log` what is written and shown, `waiting` what was waited for, `stop` what a
signal does, `devices` where all this runs, `memory` how a CPU keeps its feature maps.
"""
