"""Weight files: our own, ImageNet weights, and those of other code bases.

Read `model_file` first (our format), then `load` (a file to a network), `start` (starting training from a
detector), `imagenet` (backbones), `archive` (inspecting a file without running its code), `published/` (files
of other code bases) and `import_model` (converting those to ours).
"""
