"""Weight files of other code bases: AdelaiDet, detectron2, MMDetection, the official code, torchvision.

Read in this order: `opening.py` (reads the tensors of a file without running code), `layouts.py` (names of
our tensors in other code bases), `settings.py` (the preprocessing and conventions that reproduce their
metrics), `read.py` (combines them), `coco.py` (classes and weights of COCO).
"""
