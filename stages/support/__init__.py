"""What carries data without deciding a number: no stage depends on this folder.

So no parameter has a default here. Tests hold the file formats, the parsing, and the facts of
MNIST's format in params.py to fixed results. Whoever must change one of these raises FORMAT in
stages/learning/split.py.
"""
