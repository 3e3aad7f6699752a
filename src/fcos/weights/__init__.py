"""Weight files: our own, ImageNet weights, and weights of other code bases.

Read `model_file` first (our format), then `load` (builds a network from a file), `start` (training from a
detector), `imagenet` (backbones), `archive` (inspecting a file without running its code), `published/` (files
of other code bases) and `import_model` (converting them to ours).
"""
