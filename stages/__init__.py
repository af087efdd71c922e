"""One module per stage of dvc.yaml."""

import sys

if sys.argv[0] == "-m":  # the stage is about to be imported, and with it torch, which takes seconds
    from stages.lib.command import catch_signals

    catch_signals()
