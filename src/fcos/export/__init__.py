"""Export a detector to a file or folder that runs without this package: ONNX, OpenVINO, torch, ncnn, LiteRT.

Read `graph.py` first (the exported graph), then `suppress.py` (its NMS), `card.py` (metadata),
`torch_program.py`, `onnx_file.py` and `openvino_folder.py` (formats with decoding and NMS), `undecoded.py`,
`decode.py`, `ncnn_folder.py` and `litert_folder.py` (formats without them), `formats.py` (writing
any of them), `exported.py` (opening any of them), `verify.py` (comparing a file with the network),
`quantize.py` and `calibration.py` (8-bit integers), `safe_program.py` (reading a torch program without
running its code).
"""
