"""What carries data without deciding a number: no stage depends on this folder.

So no number comes from here: a default only says that a key may be absent. Tests hold the file
formats, the parsing, and the facts of MNIST's format in params.py to fixed results. A change of a
format or of such a fact must raise FORMAT in stages/learning/split.py.
"""
