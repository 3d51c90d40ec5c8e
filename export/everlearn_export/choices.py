"""What exports can be chosen by name, without torch and onnx."""

PRECISIONS = ("fp32", "fp16", "int8")
"""Of a graph, see `everlearn_export.precision`."""

TARGETS = ("cpu", "tensorrt")
"""Where an int8 graph will run."""

KINDS = ("triton", "deepstream")
"""Programs for which `everlearn_export.write_files` writes a graph."""

BATCH = 16
"""Most images at once, in such a graph."""
