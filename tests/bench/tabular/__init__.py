"""The tabular benchmark: methods of search compared over many seeds on problems whose answers cost nothing.

``digits`` looks up true measurements of a real network, every policy of its menus measured once; ``synthetic`` computes the
figures of a network of 50 layers with 80 variants each. Run by ``python -m paretopress.tests.bench.tabular``.
"""
