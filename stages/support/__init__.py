"""What carries data without deciding a number: no stage depends on this folder.

So no parameter has a default here. Tests hold the file formats and the parsing to fixed results.
"""
