"""What decides numbers: an edit in this folder makes `train` and `evaluate` run again."""
