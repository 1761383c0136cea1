"""Why did a gate of the export fail: the graph, the network, the precision or the runtime?"""
