"""The closed-loop search: propose one change, run it, read its scores, write the notebook, go on.

:mod:`.loop` tells the story. :mod:`.space` holds what may change, :mod:`.tree` the UCB tree,
:mod:`.strategies` one small function for each strategy, :mod:`.proposers` who decides,
:mod:`.notebook` and :mod:`.memory` the files of the laboratory notebook, :mod:`.workers` where runs
are executed.
"""
