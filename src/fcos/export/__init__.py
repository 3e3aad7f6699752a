"""A detector as one file that runs without this package: ONNX, OpenVINO or a torch program.

Read `graph.py` first (what is exported), then `bake.py` and `suppress.py` (what it is made of), `card.py`
(what the file says about itself), `onnx_file.py`, `openvino_folder.py`, `torch_program.py` (one for each
format), `make.py` (writing any of them), `exported.py` (opening any of them), `verify.py` (whether it finds
the same).
"""
