"""What carries data without deciding a number.

DVC does not record this folder, so an edit here makes no stage run again. Therefore nothing here
may decide a number. Tests hold the file formats, the parsing, and the facts of MNIST's format in
params.py to fixed results. Whoever changes one of these increases the number FORMAT in
stages/learning/split.py, so that the stages run again.
"""
