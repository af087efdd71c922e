"""The stages of dvc.yaml, one module each, and three folders that they share.

- `learning/` decides numbers. An edit there trains every variant again.
- `reporting/` decides what is said about the numbers. An edit there runs `compare` again, and
  `evaluate` or `select` too where they import the edited file.
- `support/` carries: parameters, files, checkpoints, errors. An edit there runs nothing again.

dvc.yaml lists these dependencies; tests/test_structure.py derives them from the imports.
Imports run one way: stages, reporting, learning, support.
"""
