"""Which compressions work on which real networks.

``networks`` lists them, ``columns`` holds what is tried on each, ``cell`` is the process in which one network meets one
column, ``run`` starts these and keeps their results, ``page`` writes the table.
"""
