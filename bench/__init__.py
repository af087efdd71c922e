"""How fast the pipeline trains, beside other ways to do the same."""
