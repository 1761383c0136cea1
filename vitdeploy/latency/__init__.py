"""How fast a bundle is: candidates in interleaved rounds, each in a process of its own."""
