"""What each technique does to real weights, as pictures and a page.

``networks`` brings the weights and the pictures that the layers see, ``change`` carries a technique out and measures it,
``canvas`` and ``panels`` draw, ``exhibits`` says for each technique what is shown, ``page`` writes the table.
"""
