"""Weight files of other code bases: AdelaiDet, detectron2, MMDetection, the official code, torchvision.

Read in this order: `opening.py` (a file to tensors, without running code), `layouts.py` (their names for our
tensors), `settings.py` (what else their weights need to give their numbers), `read.py` (all of it together),
`coco.py` (classes and weights of COCO).
"""
