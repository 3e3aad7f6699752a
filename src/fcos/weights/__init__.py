"""Files of weights: ours, ImageNet's, those of other code bases.

Read `model_file` first (our format), then `load` (a file to a network), `start` (a detector as the start of
a training), `imagenet` (backbones), `archive` (looking into a file without running its code), `published/`
(files of other code bases) and `import_model` (those, written as ours).
"""
